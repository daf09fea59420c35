-- One POST for wrk, from the environment: BENCH_BODY, BENCH_KEY, BENCH_EXPECT. Prints the figures as JSON at the end.
wrk.method = "POST"
wrk.body = os.getenv("BENCH_BODY")
wrk.headers["Content-Type"] = "application/json"
local key = os.getenv("BENCH_KEY")
if key ~= "" then wrk.headers["Authorization"] = "Bearer " .. key end
local expect = os.getenv("BENCH_EXPECT")
local threads = {}

function setup(thread)
  thread:set("wrong", 0)
  table.insert(threads, thread)
end

function response(status, headers, body)
  -- Looking into a body costs wrk time: one in 64 is enough to see a server that answers something else.
  seen = (seen or 0) + 1
  if seen % 64 == 1 and (status ~= 200 or not body:find(expect, 1, true)) then wrong = wrong + 1 end
end

function done(summary, latency, requests)
  local wrong = 0
  for _, thread in ipairs(threads) do wrong = wrong + thread:get("wrong") end
  local e = summary.errors
  print(string.format(
    'JSON {"requests": %d, "seconds": %.6f, "p50_ms": %.4f, "p90_ms": %.4f, "p99_ms": %.4f, "max_ms": %.4f, ' ..
    '"errors": %d, "wrong": %d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(90) / 1e3,
    latency:percentile(99) / 1e3, latency.max / 1e3, e.connect + e.read + e.write + e.status + e.timeout, wrong))
end
