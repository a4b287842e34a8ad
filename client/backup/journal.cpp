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
  from_json_text(*text, journal, path);
  return journal;
}

}  // namespace nbdelta::client::backup
