/// @file
/// The whole interface of foo_core.
#pragma once

#include "foo_core/attention.h"
#include "foo_core/blocks.h"
#include "foo_core/build_info.h"
#include "foo_core/cross_entropy.h"
#include "foo_core/elementwise.h"
#include "foo_core/error.h"
#include "foo_core/executor.h"
#include "foo_core/export.h"
#include "foo_core/glu.h"
#include "foo_core/linear.h"
#include "foo_core/quantize.h"
#include "foo_core/rms_norm.h"
#include "foo_core/rope.h"
#include "foo_core/tensor.h"
#include "foo_core/version.h"
