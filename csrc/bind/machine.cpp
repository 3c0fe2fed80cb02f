// Threads, instruction sets, and what this build is.
#include <pybind11/stl.h>

#include "bind/register.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

#ifndef FRNN_BUILD_TYPE
#define FRNN_BUILD_TYPE "unknown"
#endif
#ifndef FRNN_VERSION
#define FRNN_VERSION "unknown"
#endif

namespace fastrnn::bind {

namespace py = pybind11;

namespace {

// What a process finds out once is found out at import. Inside a call it could be under way in one thread
// while another forks, and the child would wait for it for ever.
void find_out_now() {
  const BorrowedScratch scratch;
  try {
    cpu::current_isa();
    cpu::num_threads();
  } catch (const std::invalid_argument&) {
    // A bad FASTRNN_ISA or FASTRNN_NUM_THREADS: every call that needs it says so; importing does not fail.
  }
}

}  // namespace

void register_machine(py::module_& m) {
  find_out_now();
  m.def("set_num_threads", &cpu::set_num_threads, py::arg("n"));
  m.def("get_num_threads", &cpu::num_threads);
  m.def("isa", [] { return cpu::name(cpu::current_isa()); });
  m.def("set_isa", [](const std::string& name) { cpu::set_isa(name); }, py::arg("name"));
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (const cpu::Isa isa : cpu::available_isas()) names.emplace_back(cpu::name(isa));
    return names;
  });
  m.def("allow_dot_instructions", &cpu::allow_dot_instructions, py::arg("allowed"));
  m.def("build_info", [] {
    std::map<std::string, std::string> info{{"version", FRNN_VERSION}, {"build_type", FRNN_BUILD_TYPE}};
#if defined(__clang__)
    info["compiler"] = "clang " __clang_version__;
#else
    info["compiler"] = "gcc " __VERSION__;
#endif
    info["isas"] =
        "baseline"
#ifdef FRNN_HAVE_AVX2
        ", avx2"
#endif
#ifdef FRNN_HAVE_AVX512
        ", avx512"
#endif
        ;
    return info;
  });
}

}  // namespace fastrnn::bind
