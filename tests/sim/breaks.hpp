#pragma once

#include <cstdint>
#include <string_view>

namespace nbdelta::testing {

/// A mistake made on purpose, where client/backup asks for it by `broken(name)`.
struct Break {
  std::string_view name;
  std::string_view mistake;
  std::uint64_t seed;  // that is known to find it; another is looked for where it does not
};

inline constexpr Break kBreaks[] = {
    {"two-transactions", "the first disk is switched by a transaction of its own", 1},
    {"no-thaw-after-failed-switch", "an error path passes by the thaw", 107},
    {"no-thaw-when-session-dies", "the guardian ends with its session", 13},
    {"no-thaw-at-deadline", "the guardian waits for the session, however long", 256},
    {"no-thaw-after-failed-freeze", "a freeze that failed is taken for none", 11},
    {"journal-after-overlays", "the overlays are made before the journal names them", 22},
    {"manifest-before-data", "the restore point is published before its data is there", 4},
    {"bitmap-dropped-before-fsync", "it goes when its map was read, not when the data is there",
     14},
    {"dirty-bits-dropped", "a failed session's bitmap is removed, not merged", 9},
    {"inconsistent-bitmap-used", "a bitmap that a crash made inconsistent is taken as a map", 18},
    {"lowest-overlay-alone-copied", "what failed sessions' overlays have is not copied", 15},
    {"overlay-removed-before-commit", "the overlay's file goes before its commit has ended", 1},
    {"commit-while-served", "nobody ends nbdkit before the commit", 1},
    {"commit-unguarded", "nobody ends a pending commit when the session dies", 161},
    {"mark-before-pending", "an overlay counts as committed before it is", 321},
    {"mark-after-finalize", "the guest moves before its overlay counts as committed", 87},
    {"guest-not-stopped", "the guest writes while it moves to a raw base, of which QEMU dies", 14},
    {"guest-left-standing", "a guest that was stopped for that is not let go on", 14},
    {"finalized-without-mark", "a pending commit is ended without the mark", 209},
    {"mark-kept-by-failed-commit", "a commit fails in the end, and its overlay stays marked", 777},
    {"mark-removed-first", "the mark goes before the overlay", 4933},
    {"next-start-without-overlay", "what names the overlay to start on is not written", 2},
    {"next-start-on-committed-overlay", "it is left when the overlay is committed", 2257},
    {"stale-header", "a header that names a file which is about to go is left", 1361},
    {"new-disk-left-out", "a disk that the last restore point lacks is not backed up", 39},
    {"guest-without-space-left", "it is not let go on when there is room again", 422},
    {"nobody-stands-in", "a guest stays frozen when its guardian dies and QEMU hangs", 1},
    {"nbd-server-forgotten", "a server that did not stop is taken for one that does not run", 214},
    {"journal-trusted", "recover takes an overlay for unused because the journal says so", 1},
};

}  // namespace nbdelta::testing
