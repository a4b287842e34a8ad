#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nbdelta::sim {

/// One image that is to be checked.
struct CheckedImage {
  std::string disk;
  std::string path;
  std::string format = "qcow2";
};

/// Images that must show one and the same instant.
struct CheckedPoint {
  std::string name;
  std::vector<CheckedImage> images;
  /// Of a restore point: which session's switch it must show ("nbdelta-CHAIN-NUMBER-"). Empty: any
  /// switch, or the end of the record.
  std::string session;
};

struct CheckResult {
  std::string name;
  bool exact = false;
  std::string text;  // for people: which instant it is, or what differs
};

/// The points of these places: a folder of a restore point, a folder with such folders, or
/// DISK=IMAGE (raw where its name ends with ".raw", else qcow2). Throws Error.
std::vector<CheckedPoint> points_at(const std::vector<std::string>& places);

/// Whether each equals what the record says of its instant, byte for byte: all the disks that its
/// session's switch had; the text names those of the guest that it had not. A point without images
/// is not exact. Throws Error where the record or an image cannot be read, or the record has no
/// start of a guest.
std::vector<CheckResult> check_points(const std::string& record,
                                      const std::vector<CheckedPoint>& points);

/// Whether each image has all that its guest had flushed when it was killed, and nothing that it
/// never wrote. Throws as check_points().
std::vector<CheckResult> check_after_crash(const std::string& record,
                                           const std::vector<CheckedPoint>& points);

}  // namespace nbdelta::sim
