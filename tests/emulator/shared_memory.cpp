#include "emulator/shared_memory.h"

#include <algorithm>

namespace fastrnn::cuda::emulated {
namespace {

// The agent of these 32 whom `who` does not know to have ended that epoch; -1 if it knows of all.
int first_unknown(const Agent& who, int first, std::uint32_t which, std::uint32_t epoch) {
  for (; which != 0; which &= which - 1) {
    const int id = first + __builtin_ctz(which);
    if (!who.knows(id, epoch)) return id;
  }
  return -1;
}

std::string place(int granule, int size) {
  return "bytes " + std::to_string(granule * size) + " and " + std::to_string(granule * size + 1) +
         " of shared memory";
}

}  // namespace

void SharedMemory::reset(int bytes, bool races, const Names& names) {
  names_ = &names;
  const auto granules = static_cast<std::size_t>((bytes + kGranule - 1) / kGranule);
  memory_ =
      std::vector<unsigned char>(static_cast<std::size_t>(bytes), 0xff);  // NaN in every type, exact in size
  content_.assign(granules, kNothing);
  granules_.resize(races ? granules : 0);
  for (Granule& granule : granules_) granule.forget();
}

void SharedMemory::read(const Agent& who, int offset, int bytes, Site site) {
  read_as(who, offset, bytes, site, false);
}
void SharedMemory::use_barrier(const Agent& who, int offset, int bytes, Site site) {
  read_as(who, offset, bytes, site, true);
}
void SharedMemory::write(const Agent& who, int offset, int bytes, Site site) {
  write_as(who, offset, bytes, site, kStored);
}
void SharedMemory::make_barrier(const Agent& who, int offset, int bytes, Site site) {
  write_as(who, offset, bytes, site, kBarrier);
}

void SharedMemory::read_as(const Agent& who, int offset, int bytes, Site site, bool barrier) {
  for (int g = offset / kGranule; g * kGranule < offset + bytes; ++g) {
    const auto at = static_cast<std::size_t>(g);
    if (!granules_.empty()) {
      check_read(who, g, site);
      add_reader(granules_[at], who, who.id, who.epoch, site);
    }
    if (!barrier) refuse_barrier(who, "reads", site, g);
    if (content_[at] == kNothing) {
      throw KernelError(names_->name_of(who.id) + " reads at " + site.text() +
                        " what nothing has written: " + place(g, kGranule));
    }
  }
}

void SharedMemory::write_as(const Agent& who, int offset, int bytes, Site site, Content content) {
  for (int g = offset / kGranule; g * kGranule < offset + bytes; ++g) {
    const auto at = static_cast<std::size_t>(g);
    refuse_barrier(who, "overwrites", site, g);
    if (!granules_.empty()) {
      check_write(who, g, site);
      Granule& granule = granules_[at];
      granule.writer = who.id;
      granule.epoch = who.epoch;
      granule.site = site;
      granule.readers.clear();
    }
    content_[at] = content;
  }
}

void SharedMemory::issued(const Agent& who, int offset, int bytes, Site site) {
  for (int g = offset / kGranule; g * kGranule < offset + bytes; ++g) {
    refuse_barrier(who, "overwrites", site, g);
    if (granules_.empty()) continue;
    check_write(who, g, site);
    Granule& granule = granules_[static_cast<std::size_t>(g)];
    granule.writer = kUnderWay;
    granule.site = site;
    granule.readers.clear();
  }
}

void SharedMemory::arrived(int id, std::uint32_t epoch, int offset, int bytes, Site site, Content content) {
  for (int g = offset / kGranule; g * kGranule < offset + bytes; ++g) {
    const auto at = static_cast<std::size_t>(g);
    content_[at] = content;
    if (!granules_.empty()) {
      granules_[at].writer = id;
      granules_[at].epoch = epoch;
      granules_[at].site = site;
    }
  }
}

void SharedMemory::read_until(const Agent& who, int id, std::uint32_t epoch, int offset, int bytes,
                              Site site) {
  read(who, offset, bytes, site);
  for (int g = offset / kGranule; g * kGranule < offset + bytes; ++g) {
    const auto at = static_cast<std::size_t>(g);
    if (content_[at] == kStored) {
      throw KernelError("missing fence_proxy_async: " + names_->name_of(who.id) + " copies at " +
                        site.text() + " what a thread has stored: " + place(g, kGranule));
    }
    if (!granules_.empty()) add_reader(granules_[at], who, id, epoch, site);
  }
}

void SharedMemory::fence_proxy_async(const Agent& who) {
  for (std::size_t g = 0; g < content_.size(); ++g) {
    const bool known = granules_.empty() || (granules_[g].writer != kUnderWay &&
                                             who.knows(granules_[g].writer, granules_[g].epoch));
    if (content_[g] == kStored && known) content_[g] = kForAsync;
  }
}

void SharedMemory::refuse_barrier(const Agent& who, const char* does, Site site, int granule) const {
  if (content_[static_cast<std::size_t>(granule)] != kBarrier) return;
  throw KernelError(names_->name_of(who.id) + " " + does + " at " + site.text() +
                    " what is part of an mbarrier: " + place(granule, kGranule));
}

void SharedMemory::check_end(const Clock& known, const std::string& cta) const {
  for (std::size_t g = 0; g < granules_.size(); ++g) {
    const Granule& granule = granules_[g];
    if (granule.writer == kUnderWay || granule.epoch > known[granule.writer]) {
      throw KernelError(
          cta + " exits before its peers are done: no thread of it has waited for what is stored to " +
          place(static_cast<int>(g), kGranule) + " from " + granule.site.text());
    }
  }
}

void SharedMemory::add_reader(Granule& granule, const Agent& who, int id, std::uint32_t epoch, Site site) {
  constexpr int group = 32;
  const int first = id / group * group;
  const std::uint32_t bit = 1u << (id % group);
  const auto joins = [&](Readers& r) {
    if (r.first != first || r.epoch != epoch) return false;
    r.which |= bit;
    r.site = site;
    return true;
  };
  if (!granule.readers.empty() && joins(granule.readers.back())) return;  // a warp mostly reads together
  for (Readers& r : granule.readers) {
    if (joins(r)) return;
  }
  // Whoever has to come after this read comes after those that this reader knows of.
  granule.readers.erase(
      std::remove_if(granule.readers.begin(), granule.readers.end(),
                     [&](const Readers& r) { return first_unknown(who, r.first, r.which, r.epoch) < 0; }),
      granule.readers.end());
  granule.readers.push_back({first, bit, epoch, site});
}

void SharedMemory::check_read(const Agent& who, int granule, Site site) const {
  const Granule& g = granules_[static_cast<std::size_t>(granule)];
  if (g.writer == kUnderWay || !who.knows(g.writer, g.epoch)) {
    race(who, "reads", site, g.writer, "stores", g.site, granule);
  }
}

void SharedMemory::check_write(const Agent& who, int granule, Site site) const {
  const Granule& g = granules_[static_cast<std::size_t>(granule)];
  if (g.writer == kUnderWay || !who.knows(g.writer, g.epoch)) {
    race(who, "overwrites", site, g.writer, "stores", g.site, granule);
  }
  for (const Readers& r : g.readers) {
    const int id = first_unknown(who, r.first, r.which, r.epoch);
    if (id >= 0) race(who, "overwrites", site, id, "reads", r.site, granule);
  }
}

void SharedMemory::race(const Agent& who, const char* does, Site site, int other, const char* other_does,
                        Site other_site, int granule) const {
  const std::string others = other == kUnderWay ? "a copy still under way" : names_->name_of(other);
  throw KernelError("race: " + names_->name_of(who.id) + " " + does + " at " + site.text() + " what " +
                    others + " " + other_does + " at " + other_site.text() +
                    ", and nothing orders the two: " + place(granule, kGranule));
}

}  // namespace fastrnn::cuda::emulated
