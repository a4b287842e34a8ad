#include "client/backup/real/direct_server.hpp"

#include <string>
#include <utility>

#include "image/image_uri.hpp"

namespace nbdelta::client::backup {
namespace {

constexpr std::string_view kDirty = "dirty:";

class DirectServer final : public Server {
 public:
  explicit DirectServer(ServeRequest request) : request_(std::move(request)) {}

  bool running() override { return true; }

  std::string uri(std::string_view export_name) const override {
    image::ImageUri uri{.path = request_.image,
                        .open = {.format = request_.format, .permitted_folders = request_.backing},
                        .layer = export_name == "layer"};
    if (export_name.starts_with(kDirty))
      uri.bitmap = export_name.substr(kDirty.size());
    return uri.text();
  }

  void stop() override {}

 private:
  ServeRequest request_;
};

}  // namespace

std::unique_ptr<Server> direct_server(ServeRequest request) {
  return std::make_unique<DirectServer>(std::move(request));
}

}  // namespace nbdelta::client::backup
