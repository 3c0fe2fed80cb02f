#pragma once

#include "cpu/parallel.h"

// Allows teams of n threads for a scope, whatever the machine has.
class Threads {
 public:
  explicit Threads(int n) : before_(fastrnn::cpu::num_threads()) { fastrnn::cpu::set_num_threads(n); }
  ~Threads() { fastrnn::cpu::set_num_threads(before_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_;
};
