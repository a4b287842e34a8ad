#include "client/backup/journal.hpp"

#include "client/json_text.hpp"

namespace nbdelta::client::backup {

void remove_export_sockets(Files& files, const Journal& journal) {
  for (const JournalDisk& disk : journal.disks)
    if (disk.socket)
      files.remove(*disk.socket);
}

std::string journal_path(const std::string& folder) {
  return folder + "/nbdelta-session.json";
}

std::optional<Journal> read_journal(Files& files, const std::string& folder) {
  const std::string path = journal_path(folder);
  const auto text = files.read_text(path);
  if (!text)
    return std::nullopt;
  Journal journal;
  try {
    from_json_text(*text, journal, path);
  } catch (const Error& error) {
    fail(error.error_number(),
         "{}; the file is damaged: 'nbdelta recover --qmp ADDRESS' without --vm and --to puts the "
         "guest right without it, then remove it",
         error.what());
  }
  return journal;
}

}  // namespace nbdelta::client::backup
