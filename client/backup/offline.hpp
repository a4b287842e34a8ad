#pragma once

#include <optional>
#include <string>
#include <vector>

#include "client/backup/environment.hpp"
#include "client/backup/journal.hpp"
#include "client/backup/settle.hpp"

namespace nbdelta::client::backup {

/// Puts an image right whose QEMU has ended: commits the overlays that lie over it, topmost first.
/// `journal` is that of the session that made them, where it is known; kept up to date through
/// `save`. Does nothing where QEMU, or anybody, has one of the files open. Can be repeated.
///
/// What it refuses to guess: a session and its QEMU that both died while the guest was moved from
/// the overlay to the base. Where the overlay was written to later than that, the guest stayed on
/// it; where the base was, the guest had moved and the overlay is old; where both read the same, it
/// is no matter; otherwise both are left. `overlay_dir`: see overlays_over().
Settled recover_offline(Environment& environment, const std::string& image,
                        std::optional<Journal>& journal, const std::string& overlay_dir = {});

}  // namespace nbdelta::client::backup
