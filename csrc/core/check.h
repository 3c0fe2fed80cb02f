// Checks of what csrc is handed.  They stay on in release builds: each is paid once per call, not per step.
#pragma once

#include <stdexcept>
#include <string>

#define FRNN_CHECK(condition, message)                                                       \
  do {                                                                                       \
    if (!(condition)) {                                                                      \
      throw std::invalid_argument(std::string(message) + " [" #condition ", " __FILE__ ":" + \
                                  std::to_string(__LINE__) + "]");                           \
    }                                                                                        \
  } while (0)
