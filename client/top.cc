#include "client/top.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "client/cluster_commands.h"
#include "client/interrupt.h"

namespace mt::client {
namespace {

struct Options {
  double interval = 1;
  bool once = false;
};

// Cuts a line to `width` characters; colour codes count nothing and are closed.
std::string Cut(absl::string_view line, int width) {
  if (width <= 0 || DisplayWidth(line) <= static_cast<size_t>(width)) return std::string(line);
  std::string cut;
  int shown = 0;
  bool painted = false;
  for (size_t i = 0; i < line.size(); ++i) {
    if (line[i] == '\033') {
      painted = true;
      while (i < line.size() && line[i] != 'm') cut += line[i++];
      if (i < line.size()) cut += 'm';
      continue;
    }
    if ((static_cast<unsigned char>(line[i]) & 0xc0) != 0x80 && ++shown > width) break;
    cut += line[i];
  }
  return painted ? cut + "\033[0m" : cut;
}

// The terminal in raw mode on its alternate screen; put back on the way out.
class Screen {
 public:
  Screen() {
    tcgetattr(STDIN_FILENO, &before_);
    termios raw = before_;
    raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    Write("\033[?1049h\033[?25l");
  }
  ~Screen() {
    Write("\033[?25h\033[?1049l");
    tcsetattr(STDIN_FILENO, TCSANOW, &before_);
  }
  // Line by line over what is there: no flicker.
  void Show(const std::string& frame) {
    std::string out = "\033[H";
    for (absl::string_view line : absl::StrSplit(frame, '\n'))
      absl::StrAppend(&out, line, "\033[K\r\n");
    Write(out + "\033[J");
  }
  // True if `q` was pressed within the time.
  bool QuitPressed(int milliseconds) {
    pollfd input = {.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
    if (poll(&input, 1, milliseconds) <= 0) return false;
    char key = 0;
    return read(STDIN_FILENO, &key, 1) == 1 && (key == 'q' || key == 'Q' || key == 4);
  }

 private:
  static void Write(const std::string& text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }
  termios before_ = {};
};

struct Seen {
  v1::ClusterStatus status;
  std::vector<v1::Job> jobs;
};

absl::StatusOr<Seen> Look(Client* client) {
  Seen seen;
  MT_ASSIGN_OR_RETURN(seen.status, client->Call(client->cluster(), &v1::Cluster::Stub::Status,
                                                v1::ClusterStatusRequest()));
  v1::ListJobsRequest request;
  request.set_page_size(50);
  MT_ASSIGN_OR_RETURN(v1::ListJobsResponse list,
                      client->Call(client->jobs(), &v1::Jobs::Stub::List, request));
  for (v1::Job& job : *list.mutable_jobs()) seen.jobs.push_back(std::move(job));
  return seen;
}

absl::StatusOr<ExitCode> Top(Session* session, const Options& o) {
  MT_ASSIGN_OR_RETURN(Client * client, session->client());
  MT_ASSIGN_OR_RETURN(Seen seen, Look(client));
  if (session->json()) {
    Json json = {{"cluster", MessageToJson(seen.status)}, {"jobs", Json::array()}};
    for (const v1::Job& job : seen.jobs) json["jobs"].push_back(MessageToJson(job));
    session->Print(json);
    return kExitOk;
  }
  if (o.once || isatty(STDOUT_FILENO) != 1 || isatty(STDIN_FILENO) != 1) {
    std::fputs(TopFrame(seen.status, seen.jobs, absl::Now(), 0, 0).c_str(), stdout);
    return kExitOk;
  }
  Interrupt interrupt;
  Screen screen;
  std::string trouble;
  while (!interrupt.Seen()) {
    winsize size = {};
    ioctl(STDOUT_FILENO, TIOCGWINSZ, &size);
    const int width = size.ws_col > 0 ? size.ws_col : 80,
              height = size.ws_row > 2 ? size.ws_row - 2 : 22;
    std::string frame = TopFrame(seen.status, seen.jobs, absl::Now(), width, height - 1);
    absl::StrAppend(&frame, trouble.empty() ? Paint("q quits", Colour::kDim)
                                            : Paint(Cut(trouble, width), Colour::kRed));
    screen.Show(frame);
    if (screen.QuitPressed(static_cast<int>(o.interval * 1000))) break;
    absl::StatusOr<Client*> again = trouble.empty() ? session->client() : session->Reconnect();
    absl::StatusOr<Seen> next = again.ok() ? Look(*again) : again.status();
    trouble = next.ok() ? "" : absl::StrCat("coordinator is away: ", Safe(next.status().message()));
    if (next.ok()) seen = *std::move(next);
  }
  return kExitOk;
}

}  // namespace

std::string TopFrame(const v1::ClusterStatus& status, const std::vector<v1::Job>& jobs,
                     absl::Time now, int width, int height) {
  int ready = 0;
  for (const v1::Node& node : status.nodes()) ready += node.state() == v1::NODE_STATE_READY ? 1 : 0;
  double tokens = 0;
  int running = 0;
  for (const v1::Job& job : jobs) {
    if (job.state() != v1::JOB_STATE_RUNNING) continue;
    ++running;
    tokens += job.progress().tokens_per_second();
  }
  std::string text = absl::StrFormat(
      "%s  up %s   nodes %d/%d   slots %d/%d   running %d   %s tokens/s\n\n",
      Paint("mt", Colour::kBold), Age(status.started(), now), ready, status.nodes_size(),
      status.slots_used(), status.slots(), running, Count(tokens));
  Table table({{"JOB"},
               {"STATE"},
               {"STEP", false, true},
               {"LOSS", false, true},
               {"LOSS CURVE"},
               {"TOKENS/S", false, true},
               {"MFU", false, true},
               {"STEP MS", false, true},
               {"ETA", false, true},
               {"CKPT", false, true},
               {"RESTARTS", false, true},
               {"GOODPUT", false, true},
               {"REASON"}});
  // What still goes on comes first; the nodes below are never pushed off the screen by jobs that have ended.
  std::vector<v1::Job> shown = jobs;
  std::stable_partition(shown.begin(), shown.end(),
                        [](const v1::Job& job) { return !HasEnded(job.state()); });
  const size_t room = height <= 0
                          ? shown.size()
                          : static_cast<size_t>(std::max(1, height - 5 - status.nodes_size()));
  if (shown.size() > room) shown.resize(room);
  for (const v1::Job& job : shown) {
    const v1::TrainingProgress& p = job.progress();
    const bool stepped = p.step() > 0, live = stepped && job.state() == v1::JOB_STATE_RUNNING;
    table.AddRow(
        {Safe(job.id()), StateCell(job.state()),
         absl::StrCat(p.step(), "/",
                      p.total_steps() > 0 ? p.total_steps() : job.spec().training().steps()),
         stepped ? Number(p.loss()) : "",
         Sparkline({p.loss_history().begin(), p.loss_history().end()}, 24),
         live ? Count(p.tokens_per_second()) : "", live ? Percent(p.mfu()) : "",
         live ? absl::StrFormat("%.0f", p.step_seconds() * 1000) : "",
         live && p.has_eta() ? Seconds(ToDuration(p.eta())) : "",
         job.last_checkpoint_step() > 0 ? absl::StrCat(job.last_checkpoint_step()) : "",
         absl::StrCat(job.restarts()), job.goodput() > 0 ? Percent(job.goodput()) : "",
         Safe(job.reason())});
  }
  absl::StrAppend(&text, jobs.empty() ? "no jobs\n" : table.Render(true), "\n");
  absl::StrAppend(&text,
                  NodesTable({status.nodes().begin(), status.nodes().end()}, now).Render(false));
  if (width <= 0 && height <= 0) return text;
  std::string frame;
  int lines = 0;
  for (absl::string_view line : absl::StrSplit(absl::StripSuffix(text, "\n"), '\n')) {
    if (height > 0 && ++lines > height) break;
    absl::StrAppend(&frame, Cut(line, width), "\n");
  }
  return frame;
}

void AddTopCommand(CLI::App* app, Session* session) {
  static Options o;  // CLI11 keeps references to it
  o = Options();
  CLI::App* top = app->add_subcommand("top", "Jobs, loss curves, tokens/s and nodes, live");
  top->add_flag("--once", o.once,
                "Print one frame and end (also when the output is not a terminal)");
  top->add_option("--interval", o.interval, "Seconds between frames")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  AddFormatOption(top, session);
  top->callback([session] { session->action = [session] { return Top(session, o); }; });
}

}  // namespace mt::client
