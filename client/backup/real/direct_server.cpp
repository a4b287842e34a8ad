#include "client/backup/real/direct_server.hpp"

#include <string>
#include <utility>

#include "base/percent.hpp"

namespace nbdelta::client::backup {
namespace {

constexpr std::string_view kDirty = "dirty:";

class DirectServer final : public Server {
 public:
  explicit DirectServer(ServeRequest request) : request_(std::move(request)) {}

  bool running() override { return true; }

  std::string uri(std::string_view export_name) const override {
    std::string uri = "delta:" + percent_encoded(request_.image) +
                      "?format=" + (request_.format == image::Format::raw ? "raw" : "qcow2");
    for (const std::string& folder : request_.backing)
      uri += "&backing=" + percent_encoded(folder);
    if (export_name == "layer")
      uri += "&view=layer";
    else if (export_name.starts_with(kDirty))
      uri += "&bitmap=" + percent_encoded(export_name.substr(kDirty.size()));
    return uri;
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
