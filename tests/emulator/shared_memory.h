// The shared memory of one CTA, and for every two bytes of it what they hold, who wrote them and who has read
// them since.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "emulator/clock.h"
#include "emulator/site.h"

namespace fastrnn::cuda::emulated {

// What an index of the clocks is called in a diagnosis.
class Names {
 public:
  virtual std::string name_of(int id) const = 0;

 protected:
  ~Names() = default;
};

class SharedMemory {
 public:
  // `bytes` bytes of NaN that nobody has written; `races`: whether to look for them.
  void reset(int bytes, bool races, const Names& names);

  int bytes() const { return static_cast<int>(memory_.size()); }
  unsigned char* data() { return memory_.data(); }

  // What two bytes hold.
  enum Content : unsigned char {
    kNothing,
    kStored,    // by a thread's store, cp_async or st_async, which are of the generic proxy
    kForAsync,  // that with a fence_proxy_async since, or by bulk_copy: what bulk_copy, too, may read
    kBarrier,   // part of an mbarrier, which no other access may touch
  };

  // Before each access: throws KernelError if nothing has written what is read, if only one of the two is an
  // mbarrier, or if the access races with an earlier one.  The range must be inside.
  void read(const Agent& who, int offset, int bytes, Site site);
  void write(const Agent& who, int offset, int bytes, Site site);
  // The same of an mbarrier: makes it, uses it.
  void make_barrier(const Agent& who, int offset, int bytes, Site site);
  void use_barrier(const Agent& who, int offset, int bytes, Site site);

  // A store of st_async, bulk_copy or cp_async has two ends: from `issued` on anybody's access is a race,
  // until it has `arrived`; then it counts as a store by `id` in `epoch`.
  void issued(const Agent& who, int offset, int bytes, Site site);
  void arrived(int id, std::uint32_t epoch, int offset, int bytes, Site site, Content content);
  // The source of a bulk_copy: read until `epoch` of `id`.
  void read_until(const Agent& who, int id, std::uint32_t epoch, int offset, int bytes, Site site);
  // All stores that `who` knows of come before bulk copies that follow.
  void fence_proxy_async(const Agent& who);

  // The CTA ends, with what its threads know together: throws if there was a store that they don't know of.
  void check_end(const Clock& known, const std::string& cta) const;

 private:
  static constexpr int kGranule = 2;
  static constexpr int kUnderWay = -1;

  // Some of 32 agents that read in the same epoch: lanes of a warp, mostly.
  struct Readers {
    int first = 0;
    std::uint32_t which = 0;
    std::uint32_t epoch = 0;
    Site site;
  };
  struct Granule {
    int writer = 0;
    std::uint32_t epoch = 0;  // 0: before everything
    Site site;
    std::vector<Readers> readers;  // since then, as far as they matter

    void forget() {  // but keep the vector's memory
      writer = 0;
      epoch = 0;
      readers.clear();
    }
  };

  void read_as(const Agent& who, int offset, int bytes, Site site, bool barrier);
  void write_as(const Agent& who, int offset, int bytes, Site site, Content content);
  void refuse_barrier(const Agent& who, const char* does, Site site, int granule) const;
  void add_reader(Granule& granule, const Agent& who, int id, std::uint32_t epoch, Site site);
  void check_read(const Agent& who, int granule, Site site) const;
  void check_write(const Agent& who, int granule, Site site) const;
  [[noreturn]] void race(const Agent& who, const char* does, Site site, int other, const char* other_does,
                         Site other_site, int granule) const;

  const Names* names_ = nullptr;
  std::vector<unsigned char> memory_;
  std::vector<Content> content_;   // for each granule
  std::vector<Granule> granules_;  // none if races are not looked for
};

}  // namespace fastrnn::cuda::emulated
