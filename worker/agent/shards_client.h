// The real FileFetcher: reads other nodes' Shards services over mTLS.
#pragma once

#include <memory>

#include "common/env.h"
#include "common/event_loop.h"
#include "common/tls/credentials.h"
#include "worker/agent/file_fetcher.h"

namespace mt {

// Two transfers at a time, on threads of its own; a piece that the network lost is asked for again
// from where it stopped, up to three times per endpoint. Destruction cancels what is under way; no
// `done` runs afterwards. An endpoint that sends no byte for `stall_timeout` is given up: it may answer everything else, with a
// disk that stands still.
std::unique_ptr<FileFetcher> NewShardsFetcher(EventLoop* loop, Env* env, TlsFiles tls,
                                              absl::Duration stall_timeout = absl::Minutes(1));

}  // namespace mt
