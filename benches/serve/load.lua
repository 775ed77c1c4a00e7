-- For wrk: `wrk … -s load.lua URL -- CONTENT_TYPE BODY_FILE...`. The bodies are sent in turn; one line of JSON at the end.

local requests, turn = {}, 0

function init(args)
    for index = 2, #args do
        local file = assert(io.open(args[index], "rb"))
        requests[#requests + 1] = wrk.format("POST", nil, { ["Content-Type"] = args[1] }, file:read("*a"))
        file:close()
    end
end

function request()
    turn = turn % #requests + 1
    return requests[turn]
end

function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        '{"rate": %f, "bad": %d, "us": {"p50": %d, "p99": %d, "max": %d}}\n',
        (summary.requests - errors.status) / (summary.duration / 1e6),
        errors.connect + errors.read + errors.write + errors.status + errors.timeout,
        latency:percentile(50), latency:percentile(99), latency.max
    ))
end
