#include <cstdlib>
#include <stdexcept>

#include "check.h"
#include "cpu/isa.h"

using namespace fastrnn::cpu;

TEST(isa_baseline_is_always_available) { CHECK(available_isas().front() == Isa::baseline); }

TEST(isa_available_are_in_order_of_speed) {
  const auto& isas = available_isas();
  for (std::size_t i = 1; i < isas.size(); ++i) CHECK(isas[i - 1] < isas[i]);
}

TEST(isa_is_forced_by_name) {
  const Isa before = current_isa();
  for (const Isa isa : available_isas()) {
    set_isa(name(isa));
    CHECK(current_isa() == isa);
  }
  set_isa(name(before));
}

TEST(isa_unknown_name_changes_nothing) {
  const Isa before = current_isa();
  CHECK_THROWS(set_isa("sse9"), std::invalid_argument, "isa is 'sse9'; expected");
  CHECK_THROWS(set_isa(""), std::invalid_argument, "isa is ''");
  CHECK_THROWS(set_isa("AVX2"), std::invalid_argument, "baseline");
  CHECK(current_isa() == before);
}

TEST(isa_missing_from_this_cpu_is_refused) {
  for (const Isa isa : {Isa::avx2, Isa::avx512}) {
    bool available = false;
    for (const Isa have : available_isas()) available = available || have == isa;
    if (!available) CHECK_THROWS(set_isa(name(isa)), std::invalid_argument, name(isa));
  }
}
