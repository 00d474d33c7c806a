// SPDX-License-Identifier: Apache-2.0
#include "not_inline.hpp"

int main() { return not_inline(); }
