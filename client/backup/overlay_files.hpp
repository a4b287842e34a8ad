#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "client/backup/environment.hpp"

namespace nbdelta::client::backup {

/// Overlays are `nbdelta-CHAIN-NUMBER-DISK.qcow2`, beside the base or in another folder. In that
/// case `nbdelta-CHAIN-NUMBER-DISK.qcow2.at` beside the base says where, so that nobody starts a
/// guest without its overlay. `nbdelta-CHAIN-NUMBER-DISK.qcow2.committed` beside the overlay says
/// that the base has all that the overlay has, durably, and that the guest writes to the base, or
/// is about to: the overlay counts for nothing any more, whoever finds it. It is renamed from
/// `….uncommitted`, which was made with the overlay: that needs no space, where the overlay has
/// taken all. Paths are this machine's.

/// Throws Error; nothing is left then.
void create_overlay(Files& files, const std::string& overlay, const std::string& base,
                    std::uint64_t disk_size, const std::string& backing,
                    image::Format backing_format);

/// Whether its making was interrupted: the header, which goes last, is missing. So it was never in
/// use.
bool is_half_made(Files& files, const std::string& overlay);

/// Nobody is to start a guest on the overlay any more: the file that says so goes.
void remove_current(Files& files, const std::string& overlay);

/// Where the next guest was to be started on the overlay, it is to be started on `below`, which has
/// all of it now.
void move_current(Files& files, const std::string& overlay, const std::string& below);

/// No guest may write to overlay or base meanwhile. Durable on return.
void mark_committed(Files& files, const std::string& overlay);
/// The same for one of several that were committed together, before the first of them goes: what is
/// left of them counts no more. Does nothing where there is no room for a mark.
void mark_merged(Files& files, const std::string& overlay);
void unmark_committed(Files& files, const std::string& overlay);
bool is_committed(Files& files, const std::string& overlay);

/// While no guest runs, until remove_overlay(): its base is written to by a commit of this overlay,
/// which can be begun again where it was interrupted. Durable on return.
void mark_committing(Files& files, const std::string& overlay);
/// That commit goes on: to be called every few seconds. For any thread.
void sign_committing(Files& files, const std::string& overlay);
void unmark_committing(Files& files, const std::string& overlay);
/// When it last gave such a sign: seconds since 1970. Nothing where the overlay has no such mark.
std::optional<std::int64_t> committing_since(Files& files, const std::string& overlay);

/// Where an overlay goes that was not committed: the earlier ones of its chain that lie over the
/// same, or over each other there, were below it until they were committed, and the last of them
/// would count without it. `overlays`: where to look for them.
void mark_committed_before(Files& files, const std::string& overlay,
                           const std::set<std::string>& overlays);

/// With what leads to it, and what is said of it. Returns whether there was one.
bool remove_overlay(Files& files, const std::string& overlay, const std::string& base);

/// Every overlay that is beside an image, or pointed to from there, whatever it lies over, and
/// whether it counts or not. Throws Error where an overlay is pointed to and gone.
std::vector<std::string> overlays_beside(Files& files, const std::string& image);

/// Overlays whose header names this image. Throws Error where an overlay is pointed to and gone.
std::vector<std::string> overlays_directly_over(Files& files, const std::string& image);

/// The file name of an image, or of the base of one that is an overlay of ours; empty: not known.
std::string base_of(Files& files, const std::string& image);

/// The image that the overlays below an image lie over, which is no overlay of ours; the lowest
/// that is there, where one is missing. Throws Error where one cannot be read.
std::string base_below(Files& files, const std::string& image);

/// The overlays that lie over an image, lowest first: each is the backing file of the next. Of two
/// that lie over the same the later counts: the other was below it until it was committed. Throws
/// Error (EEXIST) where they are of two chains, or the earlier was written to since; Error (ENOENT)
/// where an overlay there lies over one that has gone; Error (ESTALE) where the image is an overlay
/// that does not count any more; Error where one that may be of this image cannot be read.
/// `overlay_dir`: where overlays of a block device are, beside which nothing lasting can stand; may
/// be empty.
std::vector<std::string> overlays_over(Files& files, const std::string& image,
                                       const std::string& overlay_dir = {});

/// `nbdelta-current-IMAGE`, beside the overlays of a disk that always runs on one: a line with
/// QEMU's path of the overlay that the guest must be started with; IMAGE is the base's file name.
/// No symbolic link: QEMU opens images again by the name that it was given, and would come upon
/// another one. Throws Error (EEXIST) where it is another chain's.
void write_current(Files& files, const std::string& overlay, const std::string& qemu_path,
                   std::string_view image);

}  // namespace nbdelta::client::backup
