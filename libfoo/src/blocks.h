// Checks of tensors of blocks, which the operators on them share.
#pragma once

#include <cstdint>

#include "checks.h"
#include "foo_core/blocks.h"
#include "view.h"

namespace foo_core {

/// The number of blocks in a row of x, whose last dimension `format` divides.
std::int64_t count_blocks(const char* op, const Argument& x,
                          BlockFormat format);

/// `blocks` is a valid view of the blocks of x, which has rows.
void check_blocks(const char* op, const Argument& blocks, const Argument& x,
                  BlockFormat format);

/// A row's bytes have no gaps.
void check_contiguous_rows(const char* op, const Argument& blocks);

}  // namespace foo_core
