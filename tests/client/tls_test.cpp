#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "base/arithmetic.hpp"
#include "tests/client/client_run.hpp"
#include "tests/support/temp_folder.hpp"

namespace nbdelta::testing {
namespace {

/// Keys as `man nbdkit-tls` has them made.
class Tls : public ::testing::Test {
 protected:
  void make_certificates() {
    write("ca.info", "cn = Test\nca\ncert_signing_key\n");
    write("server.info",
          "organization = Test\ncn = localhost\ndns_name = localhost\n"
          "ip_address = 127.0.0.1\ntls_www_server\nencryption_key\nsigning_key\n");
    write("client.info",
          "organization = Test\ncn = client\ntls_www_client\nencryption_key\nsigning_key\n");
    key("ca-key.pem");
    certtool({"--generate-self-signed", "--load-privkey", at("ca-key.pem"), "--template",
              at("ca.info"), "--outfile", at("ca-cert.pem")});
    for (const std::string who : {"server", "client"}) {
      key(who + "-key.pem");
      certtool({"--generate-certificate", "--load-ca-certificate", at("ca-cert.pem"),
                "--load-ca-privkey", at("ca-key.pem"), "--load-privkey", at(who + "-key.pem"),
                "--template", at(who + ".info"), "--outfile", at(who + "-cert.pem")});
    }
  }

  std::string at(const std::string& name) const { return folder_ / name; }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(at(name)) << text;
  }
  void key(const std::string& name) const {
    certtool({"--generate-privkey", "--key-type=ecdsa", "--outfile", at(name)});
  }
  static void certtool(const Command& arguments) {
    Command command{"certtool"};
    command.insert(command.end(), arguments.begin(), arguments.end());
    run_ok(command);
  }

  /// nbds+unix URI with a parameter more.
  static std::string secure(const NbdServer& server, const std::string& parameter) {
    return "nbds+unix://alice@localhost/?socket=" + server.socket() + "&" + parameter;
  }

  TempFolder folder_;
};

TEST_F(Tls, WithPreSharedKey) {
  run_ok({"psktool", "-u", "alice", "-p", at("keys.psk")});
  const NbdServer server =
      NbdServer::nbdkit("pattern", {"20M"}, {"--tls=require", "--tls-psk=" + at("keys.psk")});
  const auto result = pulled({secure(server, "tls-psk-file=" + at("keys.psk")), at("disk.raw")});
  EXPECT_EQ(result.at("bytes_written").to_number<std::uint64_t>(), 20 * kMiB);
  const NbdServer plain = NbdServer::nbdkit("pattern", {"20M"});
  run_ok({"nbdcopy", plain.uri(), at("copy.raw")});
  run_ok({"cmp", at("disk.raw"), at("copy.raw")});
}

TEST_F(Tls, WithCertificates) {
  make_certificates();
  const NbdServer server = NbdServer::nbdkit(
      "pattern", {"20M"},
      {"--tls=require", "--tls-verify-peer", "--tls-certificates=" + folder_.path()});
  pulled({secure(server, "tls-certificates=" + folder_.path()), at("disk.raw")});
  const NbdServer plain = NbdServer::nbdkit("pattern", {"20M"});
  run_ok({"nbdcopy", plain.uri(), at("copy.raw")});
  run_ok({"cmp", at("disk.raw"), at("copy.raw")});
}

TEST_F(Tls, WithoutOrWithTheWrongKeyIsRefused) {
  run_ok({"psktool", "-u", "alice", "-p", at("keys.psk")});
  run_ok({"psktool", "-u", "alice", "-p", at("other.psk")});
  const NbdServer server =
      NbdServer::nbdkit("pattern", {"20M"}, {"--tls=require", "--tls-psk=" + at("keys.psk")});
  EXPECT_EQ(nbdelta({"pull", server.uri(), at("disk.raw")}).status, 1);
  EXPECT_EQ(
      nbdelta({"pull", secure(server, "tls-psk-file=" + at("other.psk")), at("disk.raw")}).status,
      1);
}

}  // namespace
}  // namespace nbdelta::testing
