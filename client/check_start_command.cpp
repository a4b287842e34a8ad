#include "client/check_start_command.hpp"

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "client/backup/overlay_files.hpp"
#include "client/backup/real/files.hpp"
#include "client/exit_status.hpp"
#include "client/say.hpp"
#include "client/target/open_target.hpp"

namespace nbdelta::client {
namespace {

struct CheckStartOptions {
  std::vector<std::string> images;
  std::string overlay_dir;
};

int run_check_start_command(const CheckStartOptions& options) {
  const auto files = backup::real_files();
  int status = kDone;
  if (!options.overlay_dir.empty() && !std::filesystem::is_directory(options.overlay_dir))
    throw target::UsageError(ENOTDIR, "--overlay-dir " + options.overlay_dir + ": is no folder");
  for (const std::string& image : options.images) {
    files->check_readable(image);
    const std::vector<std::string> overlays =
        backup::overlays_over(*files, image, options.overlay_dir);
    if (overlays.empty() && options.overlay_dir.empty() && std::filesystem::is_block_file(image))
      fail(EINVAL, "{}: is a block device: say with --overlay-dir where its overlays would be",
           image);
    if (overlays.empty())
      continue;
    status = kRefused;
    say("nbdelta: {}: must not be started: {} lies over it and holds later writes. Run 'nbdelta "
        "recover --offline {}{}{}', or start the guest on {} if it is backed up with --tracking "
        "overlay\n",
        image, overlays.back(), image, options.overlay_dir.empty() ? "" : " --overlay-dir ",
        options.overlay_dir, overlays.back());
  }
  return status;
}

}  // namespace

std::function<int()> add_check_start_command(CLI::App& app) {
  const auto options = std::make_shared<CheckStartOptions>();
  CLI::App* command = app.add_subcommand(
      "check-start", "For a start-up script: may a guest be started on these images?");
  command->add_option("IMAGE", options->images, "what the guest would be started on")->required();
  command
      ->add_option("--overlay-dir", options->overlay_dir,
                   "where overlays of block devices are: beside those nothing lasts that says so")
      ->type_name("FOLDER");
  command->footer(
      R"(Exit status: 0 yes; 3 no: an overlay that was not committed lies over an image; 1 an image or its
folder cannot be read.)");
  return [options] { return run_check_start_command(*options); };
}

}  // namespace nbdelta::client
