#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fastrnn::cpu {
namespace {

std::vector<Isa> detect() {
  std::vector<Isa> found{Isa::baseline};
  // __builtin_cpu_supports also asks the operating system whether it saves the wide registers.
#ifdef FRNN_HAVE_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(Isa::avx2);
#endif
#ifdef FRNN_HAVE_AVX512
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    found.push_back(Isa::avx512);
  }
#endif
  return found;
}

// `source` is what the caller wrote the name in: an argument or an environment variable.
Isa parse(std::string_view source, std::string_view wanted) {
  std::string names;
  for (const Isa isa : available_isas()) {
    if (wanted == name(isa)) return isa;
    names += (names.empty() ? "" : ", ") + std::string(name(isa));
  }
  throw std::invalid_argument(std::string(source) + " is '" + std::string(wanted) +
                              "'; expected an instruction set that this build and CPU have: " + names);
}

Isa initial_isa() {
  const char* wanted = std::getenv("FASTRNN_ISA");
  return wanted == nullptr || *wanted == '\0' ? available_isas().back() : parse("FASTRNN_ISA", wanted);
}

std::atomic<Isa>& setting() {
  static std::atomic<Isa> isa{initial_isa()};
  return isa;
}

std::atomic<bool> dot_instructions{true};

}  // namespace

const char* name(Isa isa) {
  switch (isa) {
    case Isa::baseline: return "baseline";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
  }
  return "";
}

const std::vector<Isa>& available_isas() {
  static const std::vector<Isa> found = detect();
  return found;
}

Isa current_isa() { return setting().load(std::memory_order_relaxed); }

void set_isa(std::string_view wanted) { setting().store(parse("isa", wanted), std::memory_order_relaxed); }

bool dots_bfloat16([[maybe_unused]] Isa isa) {
#ifdef FRNN_HAVE_AVX512
  if (isa == Isa::avx512 && __builtin_cpu_supports("avx512bf16")) return dot_instructions.load();
#endif
  return false;
}

bool dots_int8([[maybe_unused]] Isa isa) {
#ifdef FRNN_HAVE_AVX512
  if (isa == Isa::avx512 && __builtin_cpu_supports("avx512vnni")) return dot_instructions.load();
#endif
#ifdef FRNN_HAVE_AVX2
  if (isa == Isa::avx2 && __builtin_cpu_supports("avxvnni")) return dot_instructions.load();
#endif
  return false;
}

void allow_dot_instructions(bool allowed) { dot_instructions.store(allowed); }

}  // namespace fastrnn::cpu
