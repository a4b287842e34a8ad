#include "image/view.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <future>
#include <span>
#include <utility>
#include <vector>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "image/qcow2_layer.hpp"

namespace nbdelta::image {
namespace {

constexpr std::size_t kLookAhead = 64;  // extents

/// What changed and reads zero is `zero`, however it is allocated.
State changed(State allocation) {
  return reads_zero(allocation) ? State::zero : State::data;
}

/// What one image file says, below nothing.
void walk_top_layer(const Disk& disk, std::uint64_t offset, std::uint64_t length,
                    const ExtentSink& sink) {
  // A raw image has no backing file: its holes are its own.
  const State unallocated = disk.qcow2() != nullptr ? State::unchanged : State::zero;
  const std::uint64_t end = offset + length;
  LayerWalk walk;
  while (offset < end) {
    const Run run = disk.layer(0).run_at(offset, end - offset, walk);
    State state = State::data;
    if (run.allocation == Allocation::unallocated)
      state = unallocated;
    else if (run.allocation == Allocation::zero)
      state = State::zero;
    if (!sink({.offset = offset, .length = run.length, .state = state}))
      return;
    offset += run.length;
  }
}

/// Walks over `dirty`, whose sink is `take`. Of what changed far apart in a qcow2 image some is
/// taken at a time, so that the disk finds all its table entries at once; where `qcow2` is null,
/// one after the other. `walk`: what `take` saw last.
template <class Dirty, class Take>
void walk_ahead(const Dirty& dirty, const Qcow2Layer* qcow2, const LayerWalk& walk,
                std::uint64_t offset, std::uint64_t length, const Take& take) {
  if (qcow2 == nullptr) {
    dirty(offset, length, take);
    return;
  }
  const std::uint64_t near = qcow2->bytes_of_metadata_block();
  std::array<Extent, kLookAhead> next;
  std::size_t count = 0;
  bool go_on = true;
  LayerWalk announced;
  const auto take_next = [&] {
    const auto ahead = std::span(next).first(std::exchange(count, 0));
    for (const Extent& extent : ahead)
      if (extent.state != State::unchanged)
        qcow2->entry_will_be_read(extent.offset, announced);
    return go_on = std::all_of(ahead.begin(), ahead.end(), take);
  };
  std::exception_ptr damage;  // concerns only who gets so far
  try {
    dirty(offset, length, [&](const Extent& extent) {
      if (count == 0 && extent.offset < walk.end + near)
        return go_on = take(extent);
      next[count++] = extent;
      return count < next.size() || take_next();
    });
  } catch (...) {
    damage = std::current_exception();
  }
  if (go_on && take_next() && damage)
    std::rethrow_exception(damage);
}

/// `dirty` is walked for what changed; the disk alone tells what of that reads zero. A raw image is
/// asked to the end of the range: each answer costs two system calls, which look for the end of the
/// data or hole wherever that is. In a qcow2 image only the entries of what changed are looked at.
template <class Dirty>
void walk_dirty(const Dirty& dirty, const Disk& disk, std::uint64_t offset, std::uint64_t length,
                const ExtentSink& sink, KnownRuns* found) {
  const std::uint64_t end = offset + length;
  const Qcow2Layer* const qcow2 = disk.qcow2();
  const Qcow2Layer* const to_announce_in = disk.is_in_memory() ? nullptr : qcow2;
  Disk::Walk walk = disk.new_walk();
  Extent known{.offset = offset, .length = 0, .state = State::data};  // the last answer
  Extent wanted;                                                      // what changed
  bool go_on = true;
  const auto pass_on = [&] {  // the part of both; `wanted` is what is left
    const std::uint64_t from = wanted.offset;
    wanted.offset = std::min(known.end(), wanted.end());
    wanted.length -= wanted.offset - from;
    return go_on = sink(
               {.offset = from, .length = wanted.offset - from, .state = changed(known.state)});
  };
  const ExtentSink take = [&](const Extent& allocation) {  // made once: it is not free
    known = allocation;
    return pass_on() && wanted.length != 0;
  };
  walk_ahead(dirty, to_announce_in, walk[0], offset, length, [&](const Extent& extent) {
    if (extent.state == State::unchanged)
      return sink(extent);
    wanted = extent;
    if ((wanted.offset < known.end() && !pass_on()) || wanted.length == 0)
      return go_on;
    if (qcow2 != nullptr) {  // mostly the image itself has it, in one piece
      const bool is_in_sight = wanted.offset < walk[0].end;
      const Run run = qcow2->run_at(wanted.offset, wanted.length, walk[0]);
      if (run.length == wanted.length && run.allocation != Allocation::unallocated) {
        wanted.state = run.allocation == Allocation::zero ? State::zero : State::data;
        if (found != nullptr && run.allocation == Allocation::data && !is_in_sight)
          found->add(wanted.offset, run);
        return go_on = sink(wanted);
      }
    }
    disk.for_each_extent(wanted.offset, (qcow2 == nullptr ? end : wanted.end()) - wanted.offset,
                         walk, take);
    return go_on;
  });
}

}  // namespace

void View::for_each_extent(std::uint64_t offset, std::uint64_t length, const ExtentSink& sink,
                           KnownRuns* found) const {
  if (std::holds_alternative<Image>(source_)) {
    disk_->for_each_extent(offset, length, sink);
  } else if (std::holds_alternative<TopLayer>(source_)) {
    walk_top_layer(*disk_, offset, length, sink);
  } else if (const auto* bitmap = std::get_if<const DirtyBitmap*>(&source_)) {
    walk_dirty([&](auto... walk) { (*bitmap)->for_each_extent(walk...); }, *disk_, offset, length,
               sink, found);
  } else {
    const ExtentMap& map = *std::get<const ExtentMap*>(source_);
    walk_dirty(
        [&](std::uint64_t from, std::uint64_t count, const ExtentSink& inner) {
          bool go_on = true;
          const std::uint64_t known = from < map.size() ? std::min(count, map.size() - from) : 0;
          map.for_each(from, known, [&](const Extent& e) { return go_on = inner(e); });
          // What the map does not cover cannot be known: changed.
          if (go_on && known < count)
            inner({.offset = from + known, .length = count - known, .state = State::data});
        },
        *disk_, offset, length, sink, found);
  }
}

ExtentMap read_map(const View& view, const std::function<void()>& check, KnownRuns* found) {
  constexpr std::uint64_t kMostParts = 64;
  constexpr std::size_t kThreads =
      4;  // also on fewer processors: a disk has several heads, or none
  constexpr unsigned kBetweenChecks = 1024;
  const std::uint64_t size = view.disk().size();
  const std::uint64_t part_size =
      std::max(round_up(div_round_up(size, kMostParts), kGiB), std::uint64_t{kGiB});
  std::vector<ExtentMap> parts(div_round_up(size, part_size));
  std::vector<KnownRuns> found_in_parts(found != nullptr ? parts.size() : 0);
  std::atomic<std::size_t> next = 0;
  std::atomic<std::size_t> memory = 0;  // of all parts
  std::atomic<bool> failed = false;
  const auto read_parts = [&] {
    try {
      for (std::size_t i = next++; i < parts.size() && !failed; i = next++) {
        const std::uint64_t offset = i * part_size;
        unsigned unchecked = 0;
        std::size_t counted = 0;
        const auto look = [&] {
          check();
          const std::size_t more = parts[i].memory() - std::exchange(counted, parts[i].memory());
          if ((memory += more) > ExtentMap::kDefaultMemoryLimit)
            fail(ENOMEM, "extent map: more than {} MiB are needed",
                 ExtentMap::kDefaultMemoryLimit >> 20);
        };
        look();
        view.for_each_extent(
            offset, std::min(part_size, size - offset),
            [&](const Extent& extent) {
              parts[i].append(extent.length, extent.state);
              if (++unchecked % kBetweenChecks == 0)
                look();
              return true;
            },
            found != nullptr ? &found_in_parts[i] : nullptr);
      }
    } catch (...) {
      failed = true;
      throw;
    }
  };
  std::vector<std::future<void>> threads;
  while (threads.size() + 1 < std::min(kThreads, parts.size()))
    threads.push_back(std::async(std::launch::async, read_parts));
  read_parts();
  for (std::future<void>& thread : threads)
    thread.get();
  ExtentMap map;
  for (ExtentMap& part : parts)
    map.append(std::move(part));
  if (found != nullptr)
    *found = KnownRuns(found_in_parts);
  return map;
}

}  // namespace nbdelta::image
