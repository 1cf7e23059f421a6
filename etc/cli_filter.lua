-- Optional: better defaults of sbatch for jobs that use an --llm-* option, and only for those.
-- What a user says, on the command line or in an #SBATCH line, stays.
--
--   --open-mode=append  the log of the first start survives a requeue
--   --requeue           the job may be requeued where the site has JobRequeue=0
--   --signal=USR2@60    a last word before the time limit, should the run not know its end;
--                       sent 60 to 120 s before it, so not before the run stops by itself
--                       with the default --llm-margin
--
-- To use it: copy it to the directory of slurm.conf and set CliFilterPlugins=lua there. A site that
-- has a cli_filter.lua calls mtllm_defaults(options) from its own slurm_cli_pre_submit().

function mtllm_defaults(options)
    local given = options["spank"] and options["spank"]["mtllm"]

    if options["type"] ~= "sbatch" or given == nil or next(given) == nil then
        return
    end
    if options["open-mode"] == nil then
        options["open-mode"] = "append"
    end
    if options["requeue"] == "unset" then
        options["requeue"] = "requeue"
    end
    -- Slurm's way of saying that there is none.
    if options["signal"] == nil or options["signal"] == "0@0" then
        options["signal"] = "USR2@60"
    end
end

function slurm_cli_setup_defaults(options, early_pass)
    return slurm.SUCCESS
end

function slurm_cli_pre_submit(options, component)
    mtllm_defaults(options)
    return slurm.SUCCESS
end

function slurm_cli_post_submit(component, job_id, step_id)
    return slurm.SUCCESS
end
