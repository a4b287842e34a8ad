#include "sim/check.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>

#include "base/error.hpp"
#include "client/backup/names.hpp"
#include "client/json_text.hpp"
#include "client/repository/manifest.hpp"
#include "image/disk.hpp"
#include "image/qcow2_header.hpp"
#include "sim/record.hpp"
#include "sim/stamp.hpp"
#include "sim/text_file.hpp"

namespace nbdelta::sim {
namespace {

namespace fs = std::filesystem;
using client::repository::Manifest;

constexpr std::string_view kRawEnding = ".raw";

std::string text_of(std::uint64_t content) {
  if (content == 0)
    return "zeros";
  if ((content & kForeignContent) != 0)
    return "bytes that are no write's";
  return fmt::format("write {}", content);
}

/// The format follows from the name here, and whoever gave another name must hear of that.
void check_magic(const CheckedImage& image) {
  if (!image::has_qcow2_magic(File::open(image.path, O_RDONLY)))
    fail(EINVAL, "{}: is not a qcow2 image; a raw one's name must end with {}", image.path,
         kRawEnding);
}

/// Throws Error where the disk has another size.
std::vector<std::uint64_t> contents_of(const CheckedImage& image, const RecordedDisk& recorded) {
  image::OpenOptions options;
  options.format = image::parse_format(image.format, image.path);
  options.permitted_folders = {"/"};  // the images are our user's own
  if (options.format == image::Format::qcow2)
    check_magic(image);
  const image::Disk disk = image::Disk::open(fs::absolute(image.path).string(), options);
  if (disk.size() != recorded.granules * kFileGranule)
    fail(EINVAL, "{}: has {} bytes; the disk {} has {}", image.path, disk.size(), recorded.name,
         recorded.granules * kFileGranule);
  std::vector<std::uint64_t> contents(recorded.granules);
  constexpr std::uint64_t kAtOnce = 256;
  std::vector<std::byte> buffer(kAtOnce * kFileGranule);
  for (std::uint64_t first = 0; first < contents.size(); first += kAtOnce) {
    const std::uint64_t count = std::min(kAtOnce, contents.size() - first);
    const auto bytes = std::span(buffer).first(count * kFileGranule);
    disk.read(bytes, first * kFileGranule);
    for (std::uint64_t i = 0; i < count; ++i)
      contents[first + i] = content_of(bytes.subspan(i * kFileGranule, kFileGranule), first + i);
  }
  return contents;
}

std::size_t find_disk(const Replay& replay, const CheckedImage& image) {
  for (std::size_t i = 0; i < replay.disks.size(); ++i)
    if (replay.disks[i].name == image.disk)
      return i;
  fail(ENOENT, "{}: the record knows no disk '{}'", image.path, image.disk);
}

CheckedPoint read_point(const fs::path& folder) {
  const std::string file = folder / "manifest.json";
  Manifest manifest;
  client::from_json_text(read_text_file(file, kLongestManifest), manifest, file);
  CheckedPoint point;
  point.name = folder.filename().string();
  point.session = client::backup::bitmap_name({manifest.chain, manifest.number}) + "-";
  for (const auto& disk : manifest.disks)
    if (disk.file)
      point.images.push_back({.disk = disk.name, .path = (folder / *disk.file).string()});
  return point;
}

CheckResult nothing_compared(const CheckedPoint& point) {
  return {.name = point.name,
          .exact = false,
          .text = "nothing was compared: its manifest names no image"};
}

/// A guest that was never started has written nothing that an image could be compared with.
void run(Replay& replay, const std::string& record) {
  replay.run(record);
  if (!replay.started)
    fail(EINVAL, "{}: has no start of a guest: there is nothing to compare with", record);
}

/// One point while the record is walked through: how many granules of it are otherwise.
class Candidate {
 public:
  Candidate(const CheckedPoint& point, const Replay& replay) : point_(&point), replay_(&replay) {
    for (const CheckedImage& image : point.images) {
      const std::size_t disk = find_disk(replay, image);
      disks_.push_back({disk, contents_of(image, replay.disks[disk])});
      for (std::uint64_t i = 0; i < replay.disks[disk].granules; ++i)
        if (disks_.back().contents[i] != replay.contents[disk][i])
          ++differences_;
    }
  }

  void changed(std::size_t disk, std::uint64_t granule, std::uint64_t before) {
    for (const Disk& each : disks_) {
      if (each.disk == disk && each.contents[granule] == before)
        ++differences_;
      if (each.disk == disk && each.contents[granule] == replay_->contents[disk][granule])
        --differences_;
    }
  }

  void at_switch(std::size_t number, const std::vector<std::string>& overlays) {
    const auto own = std::count_if(overlays.begin(), overlays.end(), [&](const auto& overlay) {
      return overlay.starts_with(point_->session);
    });
    if (own == 0 || (result_.exact && point_->session.empty()))
      return;
    // Of a session the last one counts: those before have failed.
    result_ = compare(fmt::format("switch {}", number));
    if (!point_->session.empty() && static_cast<std::size_t>(own) != disks_.size()) {
      result_.exact = false;
      result_.text = fmt::format("has {} disks; switch {} had {}", disks_.size(), number, own);
    }
  }

  CheckResult result() {
    if (disks_.empty())
      return nothing_compared(*point_);
    if (point_->session.empty() && (differences_ == 0 || !result_.exact))
      result_ = compare("the end of the record");
    else if (result_.text.empty())
      result_.text = "the record has no switch of this session";
    if (const auto others = names_of_others(); !point_->session.empty() && !others.empty())
      result_.text += fmt::format("; not compared: {}", fmt::join(others, ", "));
    result_.name = point_->name;
    return result_;
  }

 private:
  struct Disk {
    std::size_t disk;
    std::vector<std::uint64_t> contents;
  };

  CheckResult compare(const std::string& instant) const {
    CheckResult result;
    result.exact = differences_ == 0;
    if (result.exact)
      result.text = fmt::format("exact: {}, after write {}", instant, replay_->last_write);
    else
      result.text =
          fmt::format("{} granules differ from {}; {}", differences_, instant, first_difference());
    return result;
  }

  /// Of the guest's disks that the point does not have.
  std::vector<std::string> names_of_others() const {
    std::vector<std::string> names;
    for (std::size_t i = 0; i < replay_->disks.size(); ++i)
      if (std::none_of(disks_.begin(), disks_.end(),
                       [&](const Disk& each) { return each.disk == i; }))
        names.push_back(replay_->disks[i].name);
    return names;
  }

  std::string first_difference() const {
    for (const Disk& each : disks_)
      for (std::uint64_t i = 0; i < each.contents.size(); ++i)
        if (const std::uint64_t wanted = replay_->contents[each.disk][i];
            each.contents[i] != wanted)
          return fmt::format("the first: {} at {:#x} has {}, not {}",
                             replay_->disks[each.disk].name, i * kFileGranule,
                             text_of(each.contents[i]), text_of(wanted));
    return {};
  }

  const CheckedPoint* point_;
  const Replay* replay_;
  std::vector<Disk> disks_;
  std::uint64_t differences_ = 0;
  CheckResult result_;
};

CheckResult compare_after_crash(const Replay& replay, const CheckedImage& image) {
  const std::size_t disk = find_disk(replay, image);
  const std::vector<std::uint64_t> contents = contents_of(image, replay.disks[disk]);
  CheckResult result{.name = image.path, .exact = true, .text = {}};
  std::uint64_t unflushed = 0;
  for (std::uint64_t i = 0; i < contents.size(); ++i) {
    if (contents[i] == replay.contents[disk][i])
      continue;
    ++unflushed;
    if (replay.may_hold(disk, i, contents[i]))
      continue;
    result.exact = false;
    result.text = fmt::format("{} at {:#x} has {}, not {}", image.disk, i * kFileGranule,
                              text_of(contents[i]), text_of(replay.contents[disk][i]));
    return result;
  }
  result.text =
      fmt::format("nothing that was flushed is lost; {} granules were not flushed", unflushed);
  return result;
}

}  // namespace

std::vector<CheckedPoint> points_at(const std::vector<std::string>& places) {
  std::vector<CheckedPoint> points;
  for (const std::string& place : places) {
    const std::size_t equals = place.find('=');
    if (equals != std::string::npos) {
      const std::string path = place.substr(equals + 1);
      if (path.empty())
        fail(EINVAL, "{}: names no image: expected DISK=IMAGE", place);
      points.push_back({.name = path,
                        .images = {{.disk = place.substr(0, equals),
                                    .path = path,
                                    .format = path.ends_with(kRawEnding) ? "raw" : "qcow2"}},
                        .session = {}});
      continue;
    }
    std::vector<fs::path> folders;
    if (fs::exists(fs::path(place) / "manifest.json"))
      folders.emplace_back(place);
    else if (fs::is_directory(place))
      for (const auto& entry : fs::directory_iterator(place))
        if (fs::exists(entry.path() / "manifest.json"))
          folders.push_back(entry.path());
    if (folders.empty())
      fail(ENOENT, "{}: is neither a restore point, nor a folder with some, nor DISK=IMAGE", place);
    std::sort(folders.begin(), folders.end());
    for (const fs::path& folder : folders)
      points.push_back(read_point(folder));
  }
  return points;
}

std::vector<CheckResult> check_points(const std::string& record,
                                      const std::vector<CheckedPoint>& points) {
  Replay replay;
  std::vector<Candidate> candidates;
  std::size_t switches = 0;
  replay.on_disks = [&] {
    for (std::size_t i = candidates.size(); i < points.size(); ++i)
      candidates.emplace_back(points[i], replay);
  };
  replay.on_change = [&](std::size_t disk, std::uint64_t granule, std::uint64_t before) {
    for (Candidate& candidate : candidates)
      candidate.changed(disk, granule, before);
  };
  replay.on_switch = [&](const std::vector<std::string>& overlays) {
    ++switches;
    for (Candidate& candidate : candidates)
      candidate.at_switch(switches, overlays);
  };
  run(replay, record);
  std::vector<CheckResult> results;
  for (Candidate& candidate : candidates)
    results.push_back(candidate.result());
  return results;
}

std::vector<CheckResult> check_after_crash(const std::string& record,
                                           const std::vector<CheckedPoint>& points) {
  Replay replay;
  run(replay, record);
  std::vector<CheckResult> results;
  for (const CheckedPoint& point : points) {
    if (point.images.empty())
      results.push_back(nothing_compared(point));
    for (const CheckedImage& image : point.images)
      results.push_back(compare_after_crash(replay, image));
  }
  return results;
}

}  // namespace nbdelta::sim
