// expect: the reason that was meant
// SPDX-License-Identifier: Apache-2.0
#ifdef KVX_COMPILE_FAIL
static_assert(sizeof(int) == 0, "some unrelated mistake");
#endif
int main() {}
