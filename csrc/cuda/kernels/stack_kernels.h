// Every kernel of stack.inc.
#pragma once

#include "cuda/kernels/dropout.h"
#include "cuda/kernels/elman_step.h"
#include "cuda/kernels/gemm.h"
#include "cuda/kernels/gru_step.h"
#include "cuda/kernels/lstm_step.h"
#include "cuda/kernels/rows.h"
#include "cuda/kernels/split_float.h"
#include "cuda/kernels/stream_step.h"
#include "cuda/kernels/sums.h"
