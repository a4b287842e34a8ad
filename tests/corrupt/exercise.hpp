#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "image/disk.hpp"

namespace nbdelta::testing {

/// What came of using an image in every way that the plugin does.
struct Exercise {
  std::vector<std::string> errors;  // what each thing that failed said; stops at kMostErrors
  std::uint64_t extents = 0;
  std::uint64_t bytes_read = 0;
};

/// Opens an image, walks its views and all of its bitmaps, and reads: within bounds, whatever the
/// image says of itself. Nothing but nbdelta::Error may come out of the library: it is collected.
/// A view whose extents are not in order, or that calls zero what does not read zero, aborts.
///
/// Where `contents` is not empty, it is what the undamaged image holds, and whatever can be read
/// must equal it: for damage that is missing bytes rather than changed ones.
Exercise exercise(const std::string& path, const std::vector<std::byte>& contents = {});

/// Without locks: the tests write to the image themselves. Nothing behind the image is permitted.
image::Disk open_unlocked(const std::string& path);

/// The part of exercise() that comes after the image was opened.
void exercise_open(const image::Disk& disk, const std::vector<std::byte>& contents,
                   Exercise& result);

}  // namespace nbdelta::testing
