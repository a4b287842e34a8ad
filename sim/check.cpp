#include "sim/check.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "base/error.hpp"
#include "client/backup/names.hpp"
#include "client/json_text.hpp"
#include "client/repository/manifest.hpp"
#include "image/disk.hpp"
#include "sim/record.hpp"
#include "sim/stamp.hpp"
#include "sim/text_file.hpp"

namespace nbdelta::sim {
namespace {

namespace fs = std::filesystem;
using client::repository::Manifest;

std::string text_of(std::uint64_t content) {
  if (content == 0)
    return "zeros";
  if ((content & kForeignContent) != 0)
    return "bytes that are no write's";
  return fmt::format("write {}", content);
}

std::vector<std::uint64_t> contents_of(const CheckedImage& image) {
  image::OpenOptions options;
  options.format = image::parse_format(image.format, image.path);
  options.permitted_folders = {"/"};  // the images are our user's own
  const image::Disk disk = image::Disk::open(fs::absolute(image.path).string(), options);
  std::vector<std::uint64_t> contents(disk.size() / kFileGranule);
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

/// Throws Error where the disk has another size.
std::vector<std::uint64_t> contents_of(const CheckedImage& image, const RecordedDisk& disk) {
  std::vector<std::uint64_t> contents = contents_of(image);
  if (contents.size() != disk.granules)
    fail(EINVAL, "{}: has {} granules; the disk has {}", image.path, contents.size(),
         disk.granules);
  return contents;
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
    const bool is_own = std::any_of(overlays.begin(), overlays.end(), [&](const auto& overlay) {
      return overlay.starts_with(point_->session);
    });
    // Of a session the last one counts: those before have failed.
    if (is_own && (!result_.exact || !point_->session.empty()))
      result_ = compare(fmt::format("switch {}", number));
  }

  CheckResult result() {
    if (point_->session.empty() && (differences_ == 0 || !result_.exact))
      result_ = compare("the end of the record");
    else if (result_.text.empty())
      result_.text = "the record has no switch of this session";
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

}  // namespace

std::vector<CheckedPoint> points_at(const std::vector<std::string>& places) {
  std::vector<CheckedPoint> points;
  for (const std::string& place : places) {
    const std::size_t equals = place.find('=');
    if (equals != std::string::npos) {
      const std::string path = place.substr(equals + 1);
      points.push_back({.name = path,
                        .images = {{.disk = place.substr(0, equals),
                                    .path = path,
                                    .format = path.ends_with(".raw") ? "raw" : "qcow2"}},
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
  replay.run(record);
  std::vector<CheckResult> results;
  for (Candidate& candidate : candidates)
    results.push_back(candidate.result());
  return results;
}

CheckResult check_after_crash(const std::string& record, const CheckedImage& image) {
  Replay replay;
  replay.run(record);
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

}  // namespace nbdelta::sim
