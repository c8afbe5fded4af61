#include "coordinator/nodes/hostfile.h"

#include <arpa/inet.h>

#include <map>
#include <optional>
#include <set>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/disk_size.h"

namespace mt {
namespace {

constexpr size_t kMaxFileBytes = 16 << 20;
constexpr size_t kMaxHosts = 65536;
constexpr int kMaxSlots = 1024;
// "node:" and the name must fit a certificate's common name (64 characters).
constexpr size_t kMaxNameLength = 59;

using Text = absl::string_view;

// A piece of a line and where it is, so that every complaint has a column.
struct Token {
  Text text;
  size_t column;  // from 1
  Token Sub(size_t from, size_t length = Text::npos) const {
    return {text.substr(from, length), column + from};
  }
};

class LineParser {
 public:
  LineParser(Text file, int line) : file_(file), line_(line) {}

  absl::Status Error(size_t column, Text what) const {
    return absl::InvalidArgumentError(absl::StrFormat("%s:%d:%d: %s", file_, line_, column, what));
  }

  // Hosts of one line; empty when it holds none.
  absl::StatusOr<std::vector<NodeConfig>> Parse(Text line) const;

 private:
  absl::StatusOr<std::vector<Token>> Split(Text line) const;
  absl::Status ParseHost(Token token, NodeConfig& base, std::vector<std::string>& names) const;
  absl::Status ParseKey(Token token, std::map<std::string, size_t>& seen, NodeConfig& base) const;
  absl::StatusOr<int> Number(Token token, Text what, int low, int high) const;
  absl::Status CheckUser(Token token) const;
  absl::Status CheckHostName(Token token, Text name) const;
  absl::StatusOr<std::vector<std::string>> Expand(Token token) const;

  const Text file_;
  const int line_;
};

bool IsIpv4(Text text) {
  in_addr address;
  return inet_pton(AF_INET, std::string(text).c_str(), &address) == 1;
}
bool IsIpv6(Text text) {
  in6_addr address;
  return inet_pton(AF_INET6, std::string(text).c_str(), &address) == 1;
}
// One spelling per address, so that fd00::1 and fd00:0::1 are seen to be the same.
std::string Canonical(Text address) {
  in6_addr v6;
  char text[INET6_ADDRSTRLEN];
  if (inet_pton(AF_INET6, std::string(address).c_str(), &v6) == 1 &&
      inet_ntop(AF_INET6, &v6, text, sizeof(text)) != nullptr) {
    return text;
  }
  return absl::AsciiStrToLower(address);
}

bool AllOf(Text text, bool (*predicate)(char)) {
  for (const char c : text) {
    if (!predicate(c)) return false;
  }
  return true;
}
bool IsDigit(char c) { return absl::ascii_isdigit(static_cast<unsigned char>(c)); }
bool IsAlnum(char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)); }
bool IsWord(char c) { return IsAlnum(c) || c == '.' || c == '_' || c == '-'; }

absl::StatusOr<int> LineParser::Number(Token token, Text what, int low, int high) const {
  int value = 0;
  if (token.text.empty() || token.text.size() > 9 || !AllOf(token.text, IsDigit) ||
      !absl::SimpleAtoi(token.text, &value) || value < low || value > high) {
    return Error(token.column, absl::StrCat(what, " is \"", token.text,
                                            "\"; write a whole number from ", low, " to ", high));
  }
  return value;
}

absl::Status LineParser::CheckUser(Token token) const {
  if (token.text.empty() || token.text.size() > 32 || token.text[0] == '-' ||
      token.text[0] == '.' || !AllOf(token.text, IsWord)) {
    return Error(token.column,
                 absl::StrCat("user \"", token.text,
                              "\" is not a user name (letters, digits, '.', '_' "
                              "and '-', not beginning with '-' or '.', at most 32 characters)"));
  }
  return absl::OkStatus();
}

// RFC 1123 names, or an IPv4 address. What looks like an address but is none is refused instead of
// being resolved.
absl::Status LineParser::CheckHostName(Token token, Text name) const {
  const auto refuse = [&](Text why) {
    return Error(token.column, absl::StrCat("\"", name, "\" is not a host name or address: ", why));
  };
  if (name.empty()) return refuse("it is empty");
  if (name.size() > kMaxNameLength) {
    return refuse(
        absl::StrCat("it is longer than ", kMaxNameLength,
                     " characters; give it a short name here and its full name by addr="));
  }
  if (IsIpv4(name)) return absl::OkStatus();
  bool numeric = true;
  for (const Text label : absl::StrSplit(name, '.')) {
    if (label.empty()) return refuse("two dots in a row, or a dot at an end");
    if (label.size() > 63) return refuse("a part between dots is longer than 63 characters");
    if (label.front() == '-' || label.back() == '-')
      return refuse("a part begins or ends with '-'");
    for (const char c : label) {
      if (c == '_')
        return refuse("'_' is not allowed in host names; use the machine's DNS name or addr=");
      if (!IsAlnum(c) && c != '-') {
        return refuse(
            absl::StrFormat("character %s is not allowed (letters, digits, '-' and '.')",
                            absl::ascii_isprint(static_cast<unsigned char>(c))
                                ? absl::StrFormat("'%c'", c)
                                : absl::StrFormat("0x%02x", static_cast<unsigned char>(c))));
      }
    }
    numeric = numeric && AllOf(label, IsDigit);
  }
  if (numeric)
    return refuse("it looks like an IPv4 address but has not four numbers from 0 to 255");
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Token>> LineParser::Split(Text line) const {
  std::vector<Token> tokens;
  size_t i = 0;
  while (i < line.size()) {
    if (line[i] == ' ' || line[i] == '\t') {
      ++i;
      continue;
    }
    if (line[i] == '#') break;
    const size_t start = i;
    while (i < line.size() && line[i] != ' ' && line[i] != '\t' && line[i] != '#') {
      if (absl::ascii_iscntrl(static_cast<unsigned char>(line[i]))) {
        return Error(i + 1, absl::StrFormat("control character 0x%02x; is this a text file?",
                                            static_cast<unsigned char>(line[i])));
      }
      ++i;
    }
    tokens.push_back({line.substr(start, i - start), start + 1});
  }
  return tokens;
}

// gpu[001-003,7]-ib -> gpu001-ib gpu002-ib gpu003-ib gpu7-ib. Several brackets multiply.
absl::StatusOr<std::vector<std::string>> LineParser::Expand(Token token) const {
  std::vector<std::string> names = {""};
  size_t i = 0;
  while (i < token.text.size()) {
    const size_t open = token.text.find('[', i);
    const Text literal = token.text.substr(i, open == Text::npos ? Text::npos : open - i);
    if (const size_t stray = literal.find(']'); stray != Text::npos) {
      return Error(token.column + i + stray, "']' without '['");
    }
    for (std::string& name : names) name.append(literal.data(), literal.size());
    if (open == Text::npos) break;
    const size_t close = token.text.find(']', open);
    if (close == Text::npos)
      return Error(token.column + open, "'[' without ']'; ranges look like gpu[01-08,12]");
    std::vector<std::string> values;
    size_t at = open + 1;
    for (const Text part : absl::StrSplit(token.text.substr(open + 1, close - open - 1), ',')) {
      const Token here{part, token.column + at};
      at += part.size() + 1;
      const size_t dash = part.find('-');
      const Text low_text = part.substr(0, dash);
      MT_ASSIGN_OR_RETURN(const int low, Number({low_text, here.column}, "range", 0, 99999999));
      int high = low;
      if (dash != Text::npos) {
        MT_ASSIGN_OR_RETURN(high, Number(here.Sub(dash + 1), "end of range", 0, 99999999));
        if (high < low)
          return Error(here.column, absl::StrCat("range \"", part, "\" runs backwards"));
        if (low_text.size() > 1 && low_text[0] == '0' &&
            part.size() - dash - 1 != low_text.size()) {
          return Error(here.column, absl::StrCat("both ends of \"", part,
                                                 "\" must have the same number of digits"));
        }
      }
      if (values.size() + static_cast<size_t>(high - low) + 1 > kMaxHosts) {
        return Error(here.column,
                     absl::StrCat("range \"", part, "\" is larger than ", kMaxHosts, " hosts"));
      }
      const int width =
          low_text.size() > 1 && low_text[0] == '0' ? static_cast<int>(low_text.size()) : 0;
      for (int value = low; value <= high; ++value)
        values.push_back(absl::StrFormat("%0*d", width, value));
    }
    if (names.size() * values.size() > kMaxHosts) {
      return Error(token.column, absl::StrCat("more than ", kMaxHosts, " hosts in one line"));
    }
    std::vector<std::string> product;
    product.reserve(names.size() * values.size());
    for (const std::string& name : names) {
      for (const std::string& value : values) product.push_back(name + value);
    }
    names = std::move(product);
    i = close + 1;
  }
  return names;
}

absl::Status LineParser::ParseHost(Token token, NodeConfig& base,
                                   std::vector<std::string>& names) const {
  if (token.text[0] == '-')
    return Error(token.column, absl::StrCat("a host cannot begin with '-': ", token.text));
  if (const size_t at = token.text.rfind('@'); at != Text::npos) {
    MT_RETURN_IF_ERROR(CheckUser(token.Sub(0, at)));
    base.user = std::string(token.text.substr(0, at));
    token = token.Sub(at + 1);
  }
  // A leading bracket is an IPv6 address, or somebody's [group].
  if (!token.text.empty() && token.text[0] == '[') {
    const size_t close = token.text.find(']');
    const Text inner = token.text.substr(1, close == Text::npos ? Text::npos : close - 1);
    if (close == Text::npos || !IsIpv6(inner)) {
      return Error(
          token.column,
          absl::StrCat("\"", token.text,
                       "\" is not an IPv6 address in brackets; groups are not known here, and "
                       "a range follows the first letters of a name, as in gpu[01-08]"));
    }
    names = {Canonical(inner)};
    if (close + 1 == token.text.size()) return absl::OkStatus();
    if (token.text[close + 1] != ':')
      return Error(token.column + close + 1, "expected ':slots' after ']'");
    MT_ASSIGN_OR_RETURN(base.slots, Number(token.Sub(close + 2), "number of slots", 1, kMaxSlots));
    return absl::OkStatus();
  }
  if (IsIpv6(token.text)) {
    return Error(token.column,
                 absl::StrCat("write IPv6 addresses in brackets: [", token.text, "]"));
  }
  if (const size_t colon = token.text.find(':'); colon != Text::npos) {
    MT_ASSIGN_OR_RETURN(
        base.slots, Number(token.Sub(colon + 1),
                           "number of slots after ':' (ports are written port=N)", 1, kMaxSlots));
    token = token.Sub(0, colon);
  }
  MT_ASSIGN_OR_RETURN(names, Expand(token));
  for (const std::string& name : names) MT_RETURN_IF_ERROR(CheckHostName(token, name));
  return absl::OkStatus();
}

absl::Status LineParser::ParseKey(Token token, std::map<std::string, size_t>& seen,
                                  NodeConfig& base) const {
  const size_t equals = token.text.find('=');
  if (equals == Text::npos) {
    return Error(token.column, absl::StrCat("\"", token.text,
                                            "\" is not key=value; one line holds one host (or one "
                                            "range), then slots=, addr=, user=, port=, ifname="));
  }
  const std::string key(token.text.substr(0, equals));
  const Token value = token.Sub(equals + 1);
  if (!seen.emplace(key, token.column).second)
    return Error(token.column, absl::StrCat(key, "= is given twice"));
  if (value.text.empty()) return Error(value.column, absl::StrCat(key, "= has no value"));
  if (key == "slots") {
    if (base.slots != 0)
      return Error(token.column, "slots are given twice: by host:N and by slots=");
    MT_ASSIGN_OR_RETURN(base.slots, Number(value, "slots", 1, kMaxSlots));
  } else if (key == "max_slots" || key == "max-slots") {
    MT_ASSIGN_OR_RETURN(const int most, Number(value, key, 1, kMaxSlots));
    if (base.slots > most)
      return Error(value.column, absl::StrCat(key, " is smaller than the slots, ", base.slots));
  } else if (key == "port") {
    MT_ASSIGN_OR_RETURN(base.port, Number(value, "port", 1, 65535));
  } else if (key == "user") {
    if (!base.user.empty())
      return Error(token.column, "the user is given twice: by user@ and by user=");
    MT_RETURN_IF_ERROR(CheckUser(value));
    base.user = std::string(value.text);
  } else if (key == "ifname") {
    if (value.text.size() > 15 || value.text[0] == '-' || value.text[0] == '.' ||
        !AllOf(value.text, IsWord)) {
      return Error(value.column,
                   absl::StrCat("\"", value.text, "\" is not the name of a network interface"));
    }
    base.interface = std::string(value.text);
  } else if (key == "addr") {
    Text address = value.text;
    if (address.size() > 2 && address.front() == '[' && address.back() == ']') {
      address = address.substr(1, address.size() - 2);
    }
    // An address may be long: it is no certificate's name.
    if (!IsIpv6(address) && address.size() <= kMaxNameLength)
      MT_RETURN_IF_ERROR(CheckHostName(value, address));
    if (address.size() > 253 || (address.size() > kMaxNameLength && !AllOf(address, IsWord)) ||
        address[0] == '-') {
      return Error(value.column, absl::StrCat("\"", address, "\" is not a host name or address"));
    }
    base.address = Canonical(address);
  } else if (key == "data_cache") {
    const auto bytes = ParseDiskSize(value.text);
    if (!bytes.ok())
      return Error(value.column, absl::StrCat("data_cache=: ", bytes.status().message()));
    base.data_cache_bytes = *bytes;
  } else if (key == "type" || key == "rack") {
    if (value.text.size() > 63 || !AllOf(value.text, IsWord)) {
      return Error(value.column, absl::StrCat(key, " \"", value.text,
                                              "\" must be letters, digits, '.', '_' and '-'"));
    }
  } else if (key == "role") {
    return Error(
        token.column,
        "role= is not supported: every host of the file takes part; take spare hosts out of it");
  } else {
    return Error(
        token.column,
        absl::StrCat(
            "unknown key \"", key,
            "\"; known are slots, max_slots, addr, user, port, ifname, data_cache, type and rack"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<NodeConfig>> LineParser::Parse(Text line) const {
  MT_ASSIGN_OR_RETURN(const std::vector<Token> tokens, Split(line));
  if (tokens.empty()) return std::vector<NodeConfig>();
  NodeConfig base;
  base.line = line_;
  std::vector<std::string> names;
  if (tokens[0].text.find('=') != Text::npos) {
    return Error(tokens[0].column,
                 absl::StrCat("a line begins with a host, not with \"", tokens[0].text, "\""));
  }
  MT_RETURN_IF_ERROR(ParseHost(tokens[0], base, names));
  std::map<std::string, size_t> seen;
  for (size_t i = 1; i < tokens.size(); ++i) MT_RETURN_IF_ERROR(ParseKey(tokens[i], seen, base));
  if (names.size() > 1 && !base.address.empty()) {
    return Error(seen["addr"],
                 absl::StrCat("addr= names one machine, but this range has ", names.size()));
  }
  std::vector<NodeConfig> nodes;
  for (const std::string& name : names) {
    NodeConfig node = base;
    node.name = Canonical(name);
    if (node.address.empty()) node.address = node.name;
    nodes.push_back(std::move(node));
  }
  return nodes;
}

}  // namespace

absl::StatusOr<std::vector<NodeConfig>> ParseHostfile(absl::string_view contents,
                                                      absl::string_view file_name) {
  if (contents.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat(file_name, ":1:1: the file is ", contents.size(),
                                                   " bytes long; is it a hostfile?"));
  }
  if (contents.substr(0, 3) == "\xef\xbb\xbf") contents.remove_prefix(3);  // byte order mark
  std::vector<NodeConfig> nodes;
  std::map<std::string, int> line_of_name, line_of_address;
  int line_number = 0;
  for (absl::string_view line : absl::StrSplit(contents, '\n')) {
    ++line_number;
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    const LineParser parser(file_name, line_number);
    MT_ASSIGN_OR_RETURN(std::vector<NodeConfig> hosts, parser.Parse(line));
    const size_t column = line.find_first_not_of(" \t") + 1;
    for (NodeConfig& host : hosts) {
      if (const auto [it, fresh] = line_of_name.emplace(host.name, line_number); !fresh) {
        return parser.Error(column,
                            absl::StrCat("host \"", host.name, "\" is already in line ", it->second,
                                         "; keep one of them and add up the slots"));
      }
      const std::string endpoint = absl::StrCat("[", host.address, "]:", host.port);
      if (const auto [it, fresh] = line_of_address.emplace(endpoint, line_number); !fresh) {
        return parser.Error(column,
                            absl::StrCat("host \"", host.name, "\" is the same machine, ", endpoint,
                                         ", as line ", it->second, "; keep one of them"));
      }
      nodes.push_back(std::move(host));
    }
    if (nodes.size() > kMaxHosts)
      return parser.Error(column, absl::StrCat("more than ", kMaxHosts, " hosts"));
  }
  if (nodes.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        file_name, ":1:1: no hosts; write one per line, for example \"gpu01 slots=8\""));
  }
  return nodes;
}

}  // namespace mt
