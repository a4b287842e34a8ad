#include "sim/nbd_server.hpp"

#include <algorithm>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <cstring>
#include <set>
#include <utility>
#include <vector>

#include "client/say.hpp"
#include "sim/nbd_protocol.hpp"
#include "sim/stamp.hpp"
#include "sim/unawaited.hpp"

namespace nbdelta::sim {

using namespace nbd;

namespace {

constexpr std::string_view kAllocation = "base:allocation";
constexpr std::string_view kDirtyBitmap = "qemu:dirty-bitmap:";
constexpr int kNbdBacklog = 16;

/// Reads what wire() writes. Throws Error where it is cut off.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : left_(bytes) {}

  template <class Unsigned>
  Unsigned number() {
    BigEndian<Unsigned> value(0);
    const std::string_view bytes = text(sizeof value);
    std::memcpy(&value, bytes.data(), bytes.size());
    return value;
  }
  std::string_view text(std::size_t length) {
    if (length > left_.size())
      fail(EPROTO, "an option is cut off");
    const std::string_view bytes = left_.substr(0, length);
    left_.remove_prefix(length);
    return bytes;
  }

 private:
  std::string_view left_;
};

struct Status {
  std::uint32_t length;
  std::uint32_t flags;
};

/// What a context says of [offset, offset + length) of an export.
std::vector<Status> status_of(const Export& each, std::uint32_t context, std::uint64_t offset,
                              std::uint64_t length) {
  const std::uint64_t granule_size = each.node->image->granule_size();
  const auto flags_of = [&](std::uint64_t granule) -> std::uint32_t {
    if (context == 0) {
      for (const Node* node = each.node; node != nullptr; node = node->backing)
        if (const Held held = node->image->held(granule); held != Held::nothing)
          return held == Held::data ? 0 : kZero;
      return kHole | kZero;
    }
    for (Node* node = each.node; node != nullptr; node = node->backing)
      if (const Bitmap* bitmap = node->find_bitmap(each.bitmaps[context - 1]))
        return bitmap->bits[granule] ? kDirty : 0;
    return kDirty;
  };
  std::vector<Status> extents;
  for (std::uint64_t at = offset; at < offset + length && extents.size() <= kMostExtents;) {
    const std::uint64_t next = std::min((at / granule_size + 1) * granule_size, offset + length);
    const std::uint32_t flags = flags_of(at / granule_size);
    if (extents.empty() || extents.back().flags != flags)
      extents.push_back({0, flags});
    extents.back().length += static_cast<std::uint32_t>(next - at);
    at = next;
  }
  if (extents.size() > kMostExtents)
    extents.pop_back();
  return extents;
}

}  // namespace

/// One connection.
struct NbdServer::Client {
  struct Gone {};

  Client(FakeQemu& fake, const FileHost& files, UnixServer::Socket connection)
      : qemu(&fake), host(&files), socket(std::move(connection)) {}

  asio::awaitable<std::string> receive(std::size_t length) {
    std::string bytes(length, '\0');
    co_await asio::async_read(socket, asio::buffer(bytes), asio::use_awaitable);
    co_return bytes;
  }
  asio::awaitable<void> send(std::string bytes) {
    co_await asio::async_write(socket, asio::buffer(bytes), asio::use_awaitable);
  }

  /// Returns when the client may send requests. Throws Gone.
  asio::awaitable<void> negotiate();
  asio::awaitable<bool> take_option(Option option, std::string data);
  asio::awaitable<bool> give_export(Option option, std::string_view name);
  asio::awaitable<void> list(Option option);
  asio::awaitable<void> meta_contexts(Option option, std::string data);
  asio::awaitable<void> reply(Option option, OptionReply type, std::string payload = {}) {
    std::string head =
        wire(kOptionReplyMagic, option, type, static_cast<std::uint32_t>(payload.size()));
    return send(std::move(head) + std::move(payload));
  }

  asio::awaitable<void> transmit();
  std::string answer(nbd::Request type, std::uint16_t flags, std::uint64_t cookie,
                     std::uint64_t offset, std::uint32_t length) const;
  std::string read(std::uint64_t cookie, std::uint64_t offset, std::uint32_t length) const;
  std::string status(std::uint64_t cookie, std::uint64_t offset, std::uint32_t length,
                     bool only_one) const;
  std::string error(std::uint64_t cookie, std::uint32_t number) const;
  static std::string chunk(std::uint64_t cookie, bool done, Chunk type,
                           const std::string& payload) {
    return wire(kChunkMagic, done ? kChunkDone : std::uint16_t{0}, type, cookie,
                static_cast<std::uint32_t>(payload.size()), payload);
  }

  /// The export that this client has; throws Gone where it is no more.
  const Export& exported() const {
    const auto found = qemu->exports().find(id);
    if (found == qemu->exports().end())
      throw Gone();
    return found->second;
  }
  std::uint64_t size() const {
    const Image& image = *exported().node->image;
    return image.granules() * image.granule_size();
  }

  FakeQemu* qemu;
  const FileHost* host;
  UnixServer::Socket socket;
  std::string id;  // of the export; empty: none yet
  bool no_zeroes = false;
  bool structured = false;
  std::string contexts_of;           // the export's name that they were chosen for
  std::set<std::uint32_t> contexts;  // 0: allocation; i + 1: the export's bitmap i
};

asio::awaitable<void> NbdServer::Client::negotiate() {
  co_await send(wire(kMagic, kOptionMagic, std::uint16_t{kFixedNewstyle | kNoZeroes}));
  std::string bytes = co_await receive(4);
  no_zeroes = (Reader(bytes).number<std::uint32_t>() & kNoZeroes) != 0;
  for (bool done = false; !done;) {
    bytes = co_await receive(16);
    Reader head(bytes);
    const auto magic = head.number<std::uint64_t>();
    const auto option = static_cast<Option>(head.number<std::uint32_t>());
    const auto length = head.number<std::uint32_t>();
    if (magic != kOptionMagic || length > kMostOptionBytes)
      throw Gone();
    std::string data = co_await receive(length);
    done = co_await take_option(option, std::move(data));
  }
}

/// Returns whether requests follow.
asio::awaitable<bool> NbdServer::Client::take_option(Option option, std::string data) {
  switch (option) {
    case Option::abort:
      co_await reply(option, OptionReply::ack);
      throw Gone();
    case Option::list:
      co_await list(option);
      co_return false;
    case Option::structured_reply:
      structured = true;
      co_await reply(option, OptionReply::ack);
      co_return false;
    case Option::list_meta_context:
    case Option::set_meta_context:
      co_await meta_contexts(option, std::move(data));
      co_return false;
    case Option::export_name:
      co_return co_await give_export(option, data);
    case Option::info:
    case Option::go: {
      Reader reader(data);
      const auto length = reader.number<std::uint32_t>();
      const std::string_view name = reader.text(length);
      co_return co_await give_export(option, name);
    }
  }
  co_await reply(option, OptionReply::unsupported);
  co_return false;
}

asio::awaitable<bool> NbdServer::Client::give_export(Option option, std::string_view name) {
  const Export* found = qemu->find_export(std::string(name));
  if (found == nullptr && option == Option::export_name)
    throw Gone();
  if (found == nullptr) {
    co_await reply(option, OptionReply::unknown, "export '" + std::string(name) + "' not present");
    co_return false;
  }
  id = found->id;
  if (contexts_of != name)
    contexts.clear();
  const std::uint16_t flags = kHasFlags | kReadOnly | kSendFlush | kSendDf | kCanMultiConn;
  if (option == Option::export_name) {
    const std::size_t zeroes = no_zeroes ? 0 : 124;
    co_await send(wire(size(), flags, std::string(zeroes, '\0')));
    co_return true;
  }
  co_await reply(option, OptionReply::info, wire(kInfoExport, size(), flags));
  co_await reply(option, OptionReply::ack);
  co_return option == Option::go;
}

asio::awaitable<void> NbdServer::Client::list(Option option) {
  std::vector<std::string> names;  // they may change while one is sent
  for (const auto& [each_id, each] : qemu->exports())
    names.push_back(each.name);
  for (const std::string& each : names) {
    const std::string entry = wire(static_cast<std::uint32_t>(each.size()), each);
    co_await reply(option, OptionReply::server, entry);
  }
  co_await reply(option, OptionReply::ack);
}

asio::awaitable<void> NbdServer::Client::meta_contexts(Option option, std::string data) {
  Reader reader(data);
  const auto name_length = reader.number<std::uint32_t>();
  const std::string name(reader.text(name_length));
  const Export* found = qemu->find_export(name);
  const bool sets = option == Option::set_meta_context;
  if (sets)
    contexts.clear();
  if (found == nullptr || !structured) {
    const OptionReply refusal = structured ? OptionReply::unknown : OptionReply::invalid;
    co_await reply(option, refusal);
    co_return;
  }
  std::vector<std::string> offered{std::string(kAllocation)};
  for (const std::string& bitmap : found->bitmaps)
    offered.push_back(std::string(kDirtyBitmap) + bitmap);
  std::set<std::uint32_t> chosen;
  const auto count = reader.number<std::uint32_t>();
  for (std::uint32_t i = 0; i < count; ++i) {
    const auto length = reader.number<std::uint32_t>();
    const std::string_view query = reader.text(length);
    for (std::uint32_t k = 0; k < offered.size(); ++k)
      if (query == offered[k] || (!sets && query.ends_with(':') && offered[k].starts_with(query)))
        chosen.insert(k);
  }
  if (!sets && count == 0)
    for (std::uint32_t k = 0; k < offered.size(); ++k)
      chosen.insert(k);
  for (const std::uint32_t each : chosen) {
    const std::uint32_t context = sets ? each : 0;
    co_await reply(option, OptionReply::meta_context, wire(context, offered[each]));
  }
  if (sets) {
    contexts = std::move(chosen);
    contexts_of = name;
  }
  co_await reply(option, OptionReply::ack);
}

asio::awaitable<void> NbdServer::Client::transmit() {
  while (true) {
    const std::string bytes = co_await receive(28);
    Reader reader(bytes);
    const auto magic = reader.number<std::uint32_t>();
    const auto flags = reader.number<std::uint16_t>();
    const auto type = static_cast<nbd::Request>(reader.number<std::uint16_t>());
    const auto cookie = reader.number<std::uint64_t>();
    const auto offset = reader.number<std::uint64_t>();
    const auto length = reader.number<std::uint32_t>();
    if (magic != kRequestMagic || type == nbd::Request::disconnect)
      throw Gone();
    co_await send(answer(type, flags, cookie, offset, length));
  }
}

std::string NbdServer::Client::answer(nbd::Request type, std::uint16_t flags, std::uint64_t cookie,
                                      std::uint64_t offset, std::uint32_t length) const {
  const std::uint64_t disk = size();
  const bool inside = offset <= disk && length <= disk - offset && length != 0;
  if (type == nbd::Request::flush)
    return structured ? chunk(cookie, true, Chunk::none, {}) : error(cookie, 0);
  if (type == nbd::Request::read)
    return inside && length <= kMostReadBytes ? read(cookie, offset, length)
                                              : error(cookie, kInvalid);
  if (type == nbd::Request::block_status)
    return inside && !contexts.empty() ? status(cookie, offset, length, (flags & kRequestOne) != 0)
                                       : error(cookie, kInvalid);
  throw Gone();  // a write, with its data behind it, to a server that is read-only
}

std::string NbdServer::Client::error(std::uint64_t cookie, std::uint32_t number) const {
  if (!structured)
    return wire(kReplyMagic, number, cookie);
  return chunk(cookie, true, Chunk::error, wire(number, std::uint16_t{0}));
}

std::string NbdServer::Client::read(std::uint64_t cookie, std::uint64_t offset,
                                    std::uint32_t length) const {
  const std::uint64_t first = offset / kFileGranule;
  const std::uint64_t end = (offset + length + kFileGranule - 1) / kFileGranule;
  std::string data((end - first) * kFileGranule, '\0');
  try {
    for (std::uint64_t granule = first; granule < end; ++granule)
      host->fill(std::as_writable_bytes(std::span(data))
                     .subspan((granule - first) * kFileGranule, kFileGranule),
                 granule, qemu->graph().read(*exported().node, granule));
  } catch (const Error&) {
    return error(cookie, kInputOutput);
  }
  data = data.substr(offset - first * kFileGranule, length);
  return structured ? chunk(cookie, true, Chunk::data, wire(offset, data))
                    : wire(kReplyMagic, std::uint32_t{0}, cookie, data);
}

std::string NbdServer::Client::status(std::uint64_t cookie, std::uint64_t offset,
                                      std::uint32_t length, bool only_one) const {
  std::string bytes;
  for (const std::uint32_t context : contexts) {
    std::string payload = wire(context);
    for (const Status& extent : status_of(exported(), context, offset, length)) {
      payload += wire(extent.length, extent.flags);
      if (only_one)
        break;
    }
    bytes += chunk(cookie, context == *contexts.rbegin(), Chunk::block_status, payload);
  }
  return bytes;
}

NbdServer::NbdServer(asio::any_io_executor executor, FakeQemu& qemu, const FileHost& host)
    : executor_(std::move(executor)), qemu_(&qemu), host_(&host) {}

NbdServer::~NbdServer() = default;

void NbdServer::listen(const std::string& path) {
  server_ = std::make_shared<UnixServer>(executor_, path, kNbdBacklog);
  const auto accept_all = [](NbdServer* self) -> asio::awaitable<void> {
    try {
      const std::shared_ptr<UnixServer> server = self->server_;
      while (server == self->server_) {
        UnixServer::Socket socket = co_await server->accept();
        asio::co_spawn(self->executor_, self->serve(std::move(socket)), kUnawaited);
      }
    } catch (const boost::system::system_error& error) {
      if (error.code() != asio::error::operation_aborted)  // it listens no more
        client::say("nbdelta-sim: no client can connect to QEMU's NBD server any more: {}\n",
                    error.what());
    }
  };
  asio::co_spawn(executor_, accept_all(this), kUnawaited);
}

void NbdServer::stop() {
  for (const auto& client : clients_)
    client->socket.close();
  if (server_)
    server_->close();
  server_.reset();
}

void NbdServer::drop_stale_clients() {
  for (const auto& client : clients_)
    if (const auto found = qemu_->exports().find(client->id);
        !client->id.empty() && (found == qemu_->exports().end() || found->second.ends))
      client->socket.close();
}

bool NbdServer::serves(const std::string& id) const {
  return std::any_of(clients_.begin(), clients_.end(),
                     [&](const auto& client) { return client->id == id; });
}

asio::awaitable<void> NbdServer::serve(UnixServer::Socket socket) {
  const auto client = std::make_shared<Client>(*qemu_, *host_, std::move(socket));
  clients_.push_back(client);
  try {
    co_await client->negotiate();
    co_await client->transmit();
  } catch (const Client::Gone&) {
  } catch (const Error&) {
    // sent nonsense
  } catch (const boost::system::system_error&) {
    // closed the connection
  }
  clients_.remove(client);
}

}  // namespace nbdelta::sim
