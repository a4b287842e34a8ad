#include <boost/json/basic_parser_impl.hpp>
#include <optional>
#include <vector>

#include "base/arithmetic.hpp"
#include "base/error.hpp"
#include "base/file.hpp"
#include "image/permitted_file.hpp"
#include "image/status_reply.hpp"
#include "nbdkit-plugin/dirty_map.hpp"

// A map of ten million extents is a gigabyte of JSON, so it is taken element by element.

namespace nbdelta::plugin {
namespace {

namespace json = boost::json;

/// Takes [{"offset": N, "length": N, "type": N, "description": "…"}, …] and builds the map.
/// Members that it does not know are ignored. Where something is wrong, `problem` says what.
class MapHandler {
 public:
  // What basic_parser asks for.
  static constexpr std::size_t max_object_size = 64;
  static constexpr std::size_t max_array_size = SIZE_MAX;
  static constexpr std::size_t max_key_size = 1024;
  static constexpr std::size_t max_string_size = 4096;

  explicit MapHandler(const std::string& context)
      : is_bitmap_(context.starts_with(image::kDirtyBitmapPrefix)), is_told_(!context.empty()) {}

  image::ExtentMap map;
  std::string problem;

  bool on_document_begin(json::error_code&) { return true; }
  bool on_document_end(json::error_code&) { return true; }
  bool on_array_begin(json::error_code& status) {
    return ++depth_ == 1 || refuse(status, "expected an array of extents");
  }
  bool on_array_end(std::size_t, json::error_code&) {
    --depth_;
    return true;
  }
  bool on_object_begin(json::error_code& status) {
    element_ = {};
    return ++depth_ == 2 || refuse(status, "expected an array of extents");
  }
  bool on_object_end(std::size_t, json::error_code& status) {
    --depth_;
    return take_element(status);
  }
  bool on_key_part(json::string_view part, std::size_t, json::error_code&) { return append(part); }
  bool on_key(json::string_view part, std::size_t, json::error_code&) {
    append(part);
    key_ = std::exchange(text_, {});
    return true;
  }
  bool on_string_part(json::string_view part, std::size_t, json::error_code&) {
    return append(part);
  }
  bool on_string(json::string_view part, std::size_t, json::error_code& status) {
    append(part);
    if (key_ == "description")
      element_.description = text_;
    text_.clear();
    return in_extent(status);
  }
  bool on_number_part(json::string_view, json::error_code&) { return true; }
  bool on_int64(std::int64_t value, json::string_view, json::error_code& status) {
    if (value < 0)
      return refuse(status, "a negative number");
    return take_number(static_cast<std::uint64_t>(value), status);
  }
  bool on_uint64(std::uint64_t value, json::string_view, json::error_code& status) {
    return take_number(value, status);
  }
  bool on_double(double, json::string_view, json::error_code& status) { return in_extent(status); }
  bool on_bool(bool, json::error_code& status) { return in_extent(status); }
  bool on_null(json::error_code& status) { return in_extent(status); }
  bool on_comment_part(json::string_view, json::error_code&) { return true; }
  bool on_comment(json::string_view, json::error_code&) { return true; }

 private:
  struct Element {
    std::optional<std::uint64_t> offset;
    std::optional<std::uint64_t> length;
    std::optional<std::uint64_t> type;
    std::string description;
  };

  bool refuse(json::error_code& status, std::string why) {
    problem = std::move(why);
    status = json::error_code(EINVAL, boost::system::generic_category());
    return false;
  }

  bool append(json::string_view part) {
    text_.append(part.data(), part.size());
    return true;
  }

  /// Nothing but extents may stand in the array.
  bool in_extent(json::error_code& status) {
    return depth_ == 2 || refuse(status, "expected an array of extents");
  }

  bool take_number(std::uint64_t value, json::error_code& status) {
    if (key_ == "offset")
      element_.offset = value;
    else if (key_ == "length")
      element_.length = value;
    else if (key_ == "type")
      element_.type = value;
    return in_extent(status);
  }

  bool take_element(json::error_code& status) {
    if (!element_.offset || !element_.length || !element_.type)
      return refuse(status,
                    "an extent lacks offset, length or type: is this from 'nbdinfo --map --json'?");
    if (*element_.offset < map.size() || *element_.length == 0)
      return refuse(status, fmt::format("the extent of {} bytes at {:#x} is empty or not in order",
                                        *element_.length, *element_.offset));
    const std::string contradiction = check_description();
    if (!contradiction.empty())
      return refuse(status, contradiction);
    try {
      map.append(*element_.offset - map.size(), image::State::data);  // a gap: not known
      map.append(*element_.length, is_unchanged() ? image::State::unchanged : image::State::data);
    } catch (const Error& error) {
      return refuse(status, error.what());
    }
    return true;
  }

  bool describes_bitmap() const {
    return element_.description == "clean" || element_.description == "dirty";
  }

  /// The same numbers mean opposite things in a dirty bitmap and in base:allocation: where it is
  /// not certain which they are of, nothing may be taken as unchanged.
  std::string check_description() const {
    const std::string& text = element_.description;
    const bool allocation =
        text == "data" || text == "hole" || text == "zero" || text == "hole,zero";
    if (!text.empty() && !describes_bitmap() && !allocation)
      return fmt::format(
          "an extent is '{}': this map is neither of a dirty bitmap nor of "
          "base:allocation",
          text);
    if (is_told_ && ((allocation && is_bitmap_) || (describes_bitmap() && !is_bitmap_)))
      return fmt::format("an extent is '{}': this map is not of the context that map-context= says",
                         text);
    return {};
  }

  bool is_unchanged() const {
    if (describes_bitmap() || (element_.description.empty() && is_bitmap_))
      return (*element_.type & 1) == 0;
    return image::state_from_allocation_flags(*element_.type) == image::State::unchanged;
  }

  const bool is_bitmap_;  // by map-context=
  const bool is_told_;    // there is a map-context=
  int depth_ = 0;
  std::string text_;
  std::string key_;
  Element element_;
};

}  // namespace

image::ExtentMap read_map_from_json(const std::string& path, const std::string& context,
                                    std::uint64_t disk_size) {
  const File file = image::open_image_file(path, 0);
  json::basic_parser<MapHandler> parser(json::parse_options{}, context);
  std::vector<std::byte> buffer(256 * kKiB);
  std::size_t got = 0;
  std::uint64_t offset = 0;
  do {
    got = file.read_at(buffer, offset);
    json::error_code status;
    const std::size_t used =
        parser.write_some(got > 0, reinterpret_cast<const char*>(buffer.data()), got, status);
    MapHandler& handler = parser.handler();
    if (status)  // the parser does not tell at which byte
      fail(EINVAL, "map={}: after the extents of [0, {:#x}): {}", path, handler.map.size(),
           handler.problem.empty() ? status.message() : handler.problem);
    if (used < got)
      fail(EINVAL, "map={}: at byte {}: something follows the array of extents", path,
           offset + used);
    offset += got;
  } while (got > 0);
  image::ExtentMap& map = parser.handler().map;
  if (round_up(map.size(), 512) != round_up(disk_size, 512))
    fail(EINVAL, "map={}: is of a disk of {} bytes; the image has {}", path, map.size(), disk_size);
  return std::move(map);
}

}  // namespace nbdelta::plugin
