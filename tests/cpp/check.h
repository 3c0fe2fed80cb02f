// A test is a function: TEST(name) { CHECK(...); }. Checks report and go on; main.cpp runs every test.
#pragma once

#include <atomic>
#include <cmath>
#include <exception>
#include <iostream>
#include <string>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Register {
  Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

// Failures of the running test; checks may come from several threads.
inline std::atomic<int> failures{0};

inline void fail(const char* file, int line, const std::string& what) {
  ++failures;
  std::cerr << file << ":" << line << ": " + what + "\n";
}

template <class A, class B>
void near(const char* file, int line, const char* text, A got, B expected, double tolerance) {
  // Written so that a NaN fails.
  if (!(std::abs(static_cast<double>(got) - static_cast<double>(expected)) <= tolerance)) {
    fail(file, line,
         std::string(text) + " is " + std::to_string(got) + "; expected " + std::to_string(expected) +
             " +- " + std::to_string(tolerance));
  }
}

template <class Error, class F>
void throws(const char* file, int line, const char* text, const std::string& message, F f) {
  try {
    f();
  } catch (const Error& error) {
    if (std::string(error.what()).find(message) == std::string::npos) {
      fail(file, line, std::string(text) + " says '" + error.what() + "'; expected '" + message + "' in it");
    }
    return;
  }
  fail(file, line, std::string(text) + " does not throw");
}

}  // namespace check

#define TEST(name)                                           \
  static void name();                                        \
  static const check::Register register_##name{#name, name}; \
  static void name()
#define CHECK(condition) \
  ((condition) ? (void)0 : check::fail(__FILE__, __LINE__, "CHECK(" #condition ") does not hold"))
#define CHECK_NEAR(got, expected, tolerance) check::near(__FILE__, __LINE__, #got, got, expected, tolerance)
#define CHECK_THROWS(expression, Error, message) \
  check::throws<Error>(__FILE__, __LINE__, #expression, message, [&] { (void)(expression); })
