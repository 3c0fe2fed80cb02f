// Runs the tests whose name contains the argument, all without one. With two numbers I and N: every N-th test
// from the I-th on, so that N processes share them.
#include <cstdlib>

#include "check.h"

int main(int argc, char** argv) {
  const std::string wanted = argc == 2 ? argv[1] : "";
  const int first = argc == 3 ? std::atoi(argv[1]) : 0, stride = argc == 3 ? std::atoi(argv[2]) : 1;
  int index = 0;
  int passed = 0;
  int failed = 0;
  for (const check::Test& test : check::tests()) {
    const bool mine = index++ % stride == first;
    if (!mine || std::string(test.name).find(wanted) == std::string::npos) continue;
    check::failures = 0;
    try {
      test.run();
    } catch (const std::exception& error) {
      check::fail(test.name, 0, std::string("unexpected exception: ") + error.what());
    }
    if (check::failures == 0) {
      ++passed;
    } else {
      ++failed;
      std::cerr << "FAILED " << test.name << "\n";
    }
  }
  std::cout << passed << " passed, " << failed << " failed" << std::endl;
  return failed == 0 && passed > 0 ? 0 : 1;
}
