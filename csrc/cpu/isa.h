// Which instruction set the kernels use: detected once, forced by name through FASTRNN_ISA or set_isa().
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fastrnn::cpu {

// Slowest first, so that a larger value is a faster set.
enum class Isa { baseline, avx2, avx512 };

const char* name(Isa isa);

// The sets compiled into this build that this CPU and operating system can run, slowest first.
const std::vector<Isa>& available_isas();

// The set in force: the one that FASTRNN_ISA names, else the fastest available. The variable is read at the
// first call; a name that is unknown or not available here is a std::invalid_argument at every call.
Isa current_isa();

// Forces a set for everything packed from now on; same errors. Nothing changes when it throws.
void set_isa(std::string_view wanted);

// May the kernels of a set use instructions for whole groups of quantised products: avx512_bf16; avx512_vnni
// or avx_vnni?  No where the CPU has none of that width, or allow_dot_instructions(false) was called.
bool dots_bfloat16(Isa isa);
bool dots_int8(Isa isa);

// For tests, for everything packed from now on; true at first.
void allow_dot_instructions(bool allowed);

}  // namespace fastrnn::cpu
