// Where in a kernel's source a call stands, and what is thrown when a kernel breaks a rule.
#pragma once

#include <stdexcept>
#include <string>

namespace fastrnn::cuda::emulated {

// As a default argument, the place of the call.
struct Site {
  const char* file = "";
  int line = 0;

  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  bool operator==(const Site& other) const { return line == other.line && file == other.file; }
  bool operator!=(const Site& other) const { return !(*this == other); }
  std::string text() const { return std::string(file) + ":" + std::to_string(line); }
};

// The diagnosis.
class KernelError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

}  // namespace fastrnn::cuda::emulated
