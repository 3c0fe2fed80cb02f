// What tests may ask of, and tell, the emulated runtime.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include "cuda/limits.h"
#include "cuda/runtime.h"

namespace fastrnn::cuda::emulated {

inline constexpr int kDevices = 2;

void set_limits(const Limits& limits);  // of every device
std::size_t live_bytes();               // allocated and not released

// Whether these bytes lie within one allocation, and on the current device.
bool holds(const void* memory, std::size_t bytes);

// Between the two the work of a stream goes into a graph instead of being done. Streams that wait for it take
// part; end_capture throws if one of them was not waited for in turn. replay does the work of the graph that
// was captured last; memory that was allocated in a capture stays with its graph.
void begin_capture(Stream stream);
void end_capture(Stream stream);
void replay();

void destroy(Stream stream);  // whoever asks for its capture from now on gets an Error

// In this scope the work of this thread is queued, and done when the host waits for something: of the streams
// whose next piece need not wait for another stream's, any goes on. Otherwise everything is done at once.
class AnyOrderScope {
 public:
  explicit AnyOrderScope(unsigned seed);
  ~AnyOrderScope();
  AnyOrderScope(const AnyOrderScope&) = delete;
  AnyOrderScope& operator=(const AnyOrderScope&) = delete;
};

// Does work of the current device in the order of a stream.
void work(Stream stream, std::function<void()> piece);

// Who was made to wait since this was last asked, a line each: "cuda:0 0x77 for 0x99" (the current device,
// the later stream, the earlier), "cuda:0 host for 0x77", "cuda:0 host for all". Lines of the host end in "
// locked" if ask_lock's function returned something else than 0 while it waited.
std::string take_waits();
void ask_lock(int (*held)());

// Bit d: something was asked of device d, which a GPU is set up for, since this was last asked.
unsigned take_set_up();

// Whether calls check numbers that lie on the device, as with FASTRNN_CUDA_SYNC=1; at first they do.
void check_everything(bool yes);

}  // namespace fastrnn::cuda::emulated

// The same for Python, by ctypes.
extern "C" {
void fastrnn_emulated_begin_capture(void* stream);
int fastrnn_emulated_end_capture(void* stream);  // 0, or 1 where end_capture throws
void fastrnn_emulated_replay();
void fastrnn_emulated_wait_for(void* later, void* earlier);
const char* fastrnn_emulated_take_waits();  // until the next call
void fastrnn_emulated_ask_lock(int (*held)());
unsigned fastrnn_emulated_take_set_up();
void fastrnn_emulated_check_everything(int yes);
}
