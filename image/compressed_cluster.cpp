#include "image/compressed_cluster.hpp"

#include <zlib.h>
#include <zstd.h>

#include <memory>

namespace nbdelta::image {
namespace {

constexpr int kRawDeflateWindow = -12;  // QEMU block/qcow2-threads.c: no zlib header, 4 KiB window

bool inflate_cluster(std::span<const std::byte> compressed, std::span<std::byte> cluster) {
  z_stream stream{};
  stream.next_in =
      const_cast<Bytef*>(reinterpret_cast<const Bytef*>(compressed.data()));  // zlib only reads it
  stream.avail_in = static_cast<uInt>(compressed.size());
  stream.next_out = reinterpret_cast<Bytef*>(cluster.data());
  stream.avail_out = static_cast<uInt>(cluster.size());
  if (::inflateInit2(&stream, kRawDeflateWindow) != Z_OK)
    return false;
  const int status = ::inflate(&stream, Z_FINISH);
  ::inflateEnd(&stream);
  // Z_BUF_ERROR: the cluster is full although the stream's end mark was not seen.
  return (status == Z_STREAM_END || status == Z_BUF_ERROR) && stream.avail_out == 0;
}

/// What a decoder should support at least (RFC 8878, section 3.1.1.1.2): 8 MiB. A cluster never
/// needs more, and a damaged one cannot ask for more memory.
constexpr int kZstdWindowLog = 23;

struct FreeContext {
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

bool zstd_cluster(std::span<const std::byte> compressed, std::span<std::byte> cluster) {
  // To make one takes as long as to decompress with it.
  thread_local const std::unique_ptr<ZSTD_DCtx, FreeContext> context(ZSTD_createDCtx());
  // Mostly it is one frame. As a whole that needs no window of its own, which is a copy less.
  const std::size_t frame = ZSTD_findFrameCompressedSize(compressed.data(), compressed.size());
  if (context != nullptr && ZSTD_isError(frame) == 0 &&
      ZSTD_decompressDCtx(context.get(), cluster.data(), cluster.size(), compressed.data(),
                          frame) == cluster.size())
    return true;
  if (context != nullptr) {
    ZSTD_DCtx_reset(context.get(), ZSTD_reset_session_only);
    ZSTD_DCtx_setParameter(context.get(), ZSTD_d_windowLogMax, kZstdWindowLog);
  }
  ZSTD_inBuffer in{compressed.data(), compressed.size(), 0};
  ZSTD_outBuffer out{cluster.data(), cluster.size(), 0};
  while (context != nullptr && out.pos < out.size) {
    const std::size_t before_in = in.pos;
    const std::size_t before_out = out.pos;
    const std::size_t status = ZSTD_decompressStream(context.get(), &out, &in);
    const bool stuck = in.pos == before_in && out.pos == before_out;
    if (ZSTD_isError(status) != 0 || stuck)
      return false;
  }
  return out.pos == out.size;
}

}  // namespace

bool decompress_cluster(qcow2::Compression compression, std::span<const std::byte> compressed,
                        std::span<std::byte> cluster) {
  return compression == qcow2::Compression::zlib ? inflate_cluster(compressed, cluster)
                                                 : zstd_cluster(compressed, cluster);
}

}  // namespace nbdelta::image
