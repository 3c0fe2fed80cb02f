// What ThreadSanitizer is told, in a build with it: it takes fibers for threads, and looks for races in all
// memory that kernels touch, also global memory, about which the emulator's own search (clock.h) knows
// little.  About 1 MB and 1 ms for each thread of a launch: small cases only.
//
// A barrier orders what comes before it in one thread before what comes after it in another.  Each has two
// addresses to stand for it, used in turn: with one, threads that have passed and already arrive for the next
// time would be ordered before the slow ones that still leave, which hides races.
#pragma once

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>

extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace fastrnn::cuda::emulated {

#ifdef __SANITIZE_THREAD__

// Functions and scopes whose accesses are not looked at: the emulator's own, which no barrier of a kernel
// orders.
#define FRNN_UNWATCHED __attribute__((no_sanitize("thread")))

inline constexpr bool kThreadSanitizer = true;

// What this thread did comes before ...
inline void ordered_before(const void* barrier) { __tsan_release(const_cast<void*>(barrier)); }
// ... what this one will do.
inline void ordered_after(const void* barrier) { __tsan_acquire(const_cast<void*>(barrier)); }

class Unwatched {
 public:
  Unwatched() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unwatched() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
  Unwatched(const Unwatched&) = delete;
  Unwatched& operator=(const Unwatched&) = delete;
};

#else

#define FRNN_UNWATCHED
inline constexpr bool kThreadSanitizer = false;
inline void ordered_before(const void*) {}
inline void ordered_after(const void*) {}
struct Unwatched {
  ~Unwatched() {}
};

#endif

}  // namespace fastrnn::cuda::emulated
