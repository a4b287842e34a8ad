#pragma once

#include <optional>
#include <string>
#include <vector>

#include "client/backup/environment.hpp"
#include "client/backup/journal.hpp"
#include "client/backup/settle.hpp"

namespace nbdelta::client::backup {

/// Puts an image right whose QEMU has ended: commits the overlays that lie over it, topmost first;
/// but those that are marked as committed are old, and just go. `journal` is that of the session
/// that made them, where it is known. Does nothing where QEMU, or anybody, has one of the files
/// open. Can be repeated. `overlay_dir`: see overlays_over().
Settled recover_offline(Environment& environment, const std::string& image,
                        std::optional<Journal>& journal, const std::string& overlay_dir = {});

}  // namespace nbdelta::client::backup
