#include "tests/support/qemu.hpp"

#include <fmt/format.h>

#include <boost/json/parse.hpp>
#include <boost/json/value_to.hpp>
#include <cerrno>

#include "base/error.hpp"

namespace nbdelta::testing {
namespace {

namespace json = boost::json;

std::uint64_t number(const json::value& extent, const char* key) {
  return extent.at(key).to_number<std::uint64_t>();
}

}  // namespace

std::string qemu_img(const Command& arguments) {
  return run_ok(joined({"qemu-img"}, arguments));
}

void create_image(const std::string& path, const std::string& format, std::uint64_t size,
                  const std::string& options) {
  Command arguments{"create", "-q", "-f", format};
  if (!options.empty())
    arguments.insert(arguments.end(), {"-o", options});
  qemu_img(joined(std::move(arguments), {path, std::to_string(size)}));
}

void create_overlay(const std::string& path, const std::string& backing,
                    const std::string& backing_format, std::uint64_t size,
                    const std::string& options) {
  Command arguments{"create", "-q", "-f", "qcow2", "-b", backing, "-F", backing_format};
  if (!options.empty())
    arguments.insert(arguments.end(), {"-o", options});
  arguments.push_back(path);
  if (size != 0)
    arguments.push_back(std::to_string(size));
  qemu_img(arguments);
}

std::string qemu_io(const std::string& path, const std::string& format,
                    const std::vector<std::string>& commands, const Command& options) {
  Command command = joined({"qemu-io", "-f", format}, options);
  for (const std::string& line : commands)
    command.insert(command.end(), {"-c", line});
  command.push_back(path);
  return run_ok(command);
}

std::string difference(const std::string& a, const std::string& a_format, const std::string& b,
                       const std::string& b_format) {
  const Outcome outcome = run({"qemu-img", "compare", "-f", a_format, "-F", b_format, a, b});
  return outcome.ok() ? "" : outcome.out + outcome.err;
}

std::string check_complaints(const std::string& path) {
  const Outcome outcome = run({"qemu-img", "check", "-f", "qcow2", path});
  constexpr std::string_view kGood = "No errors were found on the image.\n";
  const bool good = outcome.ok() && outcome.out.starts_with(kGood) && outcome.err.empty();
  return good ? "" : outcome.out + outcome.err;
}

std::vector<MapEntry> qemu_map(const std::string& path, const std::string& format) {
  std::vector<MapEntry> map;
  const json::value parsed = json::parse(qemu_img({"map", "--output=json", "-f", format, path}));
  for (const json::value& extent : parsed.as_array())
    map.push_back({number(extent, "start"), number(extent, "length"), number(extent, "depth"),
                   extent.at("present").as_bool(), extent.at("zero").as_bool(),
                   extent.at("data").as_bool()});
  return map;
}

std::vector<NbdExtent> nbdinfo_map(const std::string& uri, const std::string& context) {
  std::vector<NbdExtent> map;
  const json::value parsed = json::parse(run_ok({"nbdinfo", "--map=" + context, "--json", uri}));
  for (const json::value& extent : parsed.as_array()) {
    const NbdExtent next{number(extent, "offset"), number(extent, "length"),
                         number(extent, "type")};
    if (!map.empty() && map.back().type == next.type)
      map.back().length += next.length;
    else
      map.push_back(next);
  }
  return map;
}

json::value image_info(const std::string& path, const std::string& format) {
  return json::parse(qemu_img({"info", "--output=json", "-f", format, path}));
}

}  // namespace nbdelta::testing
