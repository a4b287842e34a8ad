#include "client/pull/direct_source.hpp"

#include <filesystem>
#include <utility>

#include "base/error.hpp"
#include "base/percent.hpp"
#include "client/target/open_target.hpp"
#include "image/qcow2_layer.hpp"

namespace nbdelta::client::pull {
namespace {

constexpr std::string_view kScheme = "delta:";

bool parse_switch(const std::string& key, const std::string& value) {
  if (value != "on" && value != "off")
    fail(EINVAL, "{}={}: expected on or off", key, value);
  return value == "on";
}

void set(DirectUri& uri, const std::string& key, const std::string& value) {
  if (key == "bitmap" && !value.empty())
    uri.bitmap = value;
  else if (key == "view" && value == "layer")
    uri.layer = true;
  else if (key == "format")
    uri.open.format = image::parse_format(value, key);
  else if (key == "backing" && !value.empty())
    uri.open.permitted_folders.push_back(std::filesystem::absolute(value).string());
  else if (key == "lock")
    uri.open.locking = parse_switch(key, value) ? image::Locking::on : image::Locking::off;
  else if (key == "direct")
    uri.open.caching =
        parse_switch(key, value) ? image::Caching::direct : image::Caching::page_cache;
  else
    fail(EINVAL,
         "'{}={}': expected bitmap=NAME, view=layer, format=qcow2|raw, backing=FOLDER, lock=on|off "
         "or direct=on|off",
         key, value);
}

DirectUri parse(std::string_view text) {
  DirectUri uri;
  std::string_view rest = text.substr(kScheme.size());
  const auto question = rest.find('?');
  uri.path = percent_decoded(rest.substr(0, question));
  if (uri.path.empty())
    fail(EINVAL, "{}: which image? Say delta:PATH", text);
  rest.remove_prefix(question == rest.npos ? rest.size() : question + 1);
  while (!rest.empty()) {
    const std::string_view pair = rest.substr(0, rest.find('&'));
    rest.remove_prefix(std::min(pair.size() + 1, rest.size()));
    const auto equals = std::min(pair.find('='), pair.size());
    set(uri, percent_decoded(pair.substr(0, equals)),
        percent_decoded(pair.substr(std::min(equals + 1, pair.size()))));
  }
  if (uri.layer && !uri.bitmap.empty())
    fail(EINVAL, "{}: bitmap= and view= exclude each other", text);
  return uri;
}

}  // namespace

DirectUri DirectUri::of(const nbd::ConnectOptions& source) {
  try {
    if (!source.bitmap_context.empty())
      fail(EINVAL, "{}: has no contexts, as a server has; say {}PATH?bitmap=NAME", source.uri,
           kScheme);
    return parse(source.uri);
  } catch (const Error& error) {
    throw target::UsageError(error.error_number(), error.what());
  }
}

DirectSource::DirectSource(DirectUri uri, bool full)
    : disk_(image::Disk::open(uri.path, uri.open)) {
  if (uri.layer && !full) {
    view_ = image::View::layer(disk_);
    return;
  }
  if (!disk_.missing_backing().empty())
    fail(EACCES, "{}", disk_.missing_backing());
  if (uri.bitmap.empty() || full) {
    view_ = image::View::image(disk_);
    return;
  }
  if (disk_.qcow2() == nullptr)
    fail(ENOENT, "{}: a raw image holds no bitmaps", uri.path);
  bitmap_.emplace(disk_.qcow2()->bitmap(uri.bitmap));
  view_ = image::View::dirty(disk_, *bitmap_);
}

image::ExtentMap DirectSource::read_map() const {
  image::ExtentMap map;
  view_->for_each_extent(0, disk_.size(), [&](const image::Extent& extent) {
    map.append(extent.length, extent.state);
    return true;
  });
  return map;
}

}  // namespace nbdelta::client::pull
