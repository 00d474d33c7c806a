// SPDX-License-Identifier: Apache-2.0
#pragma once

// Lacks `inline` on purpose: linking two units that include this must fail.
int not_inline() { return 1; }
