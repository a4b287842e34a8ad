#pragma once

#include <string>
#include <vector>

#include "client/backup/inventory.hpp"
#include "client/qmp/client.hpp"

/// What keeps an overlay from being committed, though nothing is broken. Snapshots in it (HMP
/// `savevm`): a commit does not take them along, and they would go with the file. Where the disk
/// was made larger meanwhile, an inconsistent bitmap in the base: QEMU makes no such image larger.
namespace nbdelta::client::backup {

/// "PATH holds …; delete them …"; empty where the overlay has no snapshot.
std::string snapshots_in(const std::string& path, const std::vector<std::string>& snapshots);

/// Throws Error (EBUSY) where one of these nodes holds snapshots now.
asio::awaitable<void> check_for_snapshots(qmp::Client& qmp, std::vector<std::string> node_names,
                                          Clock::Duration timeout = qmp::Client::kTimeout);

/// Names of inconsistent bitmaps of the base. Ours, of whatever chain, are of no use to anybody.
enum class Owner : std::uint8_t { ours, others };
std::vector<std::string> inconsistent_bitmaps(const GuestDisk& disk, Owner owner);

bool has_grown(const GuestDisk& disk);

/// Why an overlay over this base could not be committed, now or after the disk was made larger, and
/// what to do; empty where it could.
std::string obstacle_in(const GuestDisk& disk);

/// Where the disk has grown: nothing keeps its base from growing too. Nobody may be served from the
/// base; it is as read-only afterwards as before. Throws Error (EBUSY) that says what does.
asio::awaitable<void> let_base_grow(qmp::Client& qmp, GuestDisk disk);

}  // namespace nbdelta::client::backup
