#!/usr/bin/env bash
# Each of the paper's extensions alone against the default, five seeds, at equal simulator steps. What is missing is run; one
# thread a run, JOBS runs side by side. Pendulum-v1 keeps its raw rewards, the others have VecNormalize.
#
#   FOLDER=benchmarks/extensions JOBS=2 benchmarks/extensions.sh
#
# Results of another version are not mixed in: name another FOLDER. Those of 0.1 have options that are gone since.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_NUM_THREADS=1
folder=${FOLDER:-benchmarks/extensions}
algorithms=(
    hybrid
    # f(R)
    hybrid,reward_transform:tanh
    hybrid,reward_transform:symlog
    hybrid,reward_transform:normalize
    hybrid,reward_transform:scale
    'hybrid,reward_transform:["normalize","tanh"]'
    # entropy
    hybrid,ent_coef:0.01
    # what needs siblings that fork, beside the same horizon without it
    hybrid,branch_horizon:64
    hybrid,branch_horizon:64,reward_transform:group
    hybrid,branch_horizon:16
    hybrid,branch_horizon:16,advantage_estimator:paper
    hybrid,branch_horizon:16,advantage_estimator:paper_per_sample
    hybrid,branch_horizon:1
    hybrid,branch_horizon:1,advantage_estimator:paper
    hybrid,branch_horizon:1,action_selection:greedy
    hybrid,branch_horizon:1,action_selection:softmax
    # presets
    paper
    grpo
)

extensions() {
    python -m sb3_hybrid_grpo compare --env "$1" --algorithms "${algorithms[@]}" --jobs "${JOBS:-2}" --output "$folder" \
        --seeds 5 --evaluations 8 --episodes 30 "${@:2}"
}

extensions hybrid_grpo/Inventory-v0 --budget 49152 --update-sizes 512
extensions Pendulum-v1 --budget 81920 --update-sizes 2048 --no-normalize
extensions hybrid_grpo/CartPoleSwingUp-v0 --budget 98304 --update-sizes 1024
python -m sb3_hybrid_grpo compare report "$folder"
python benchmarks/extensions_table.py "$folder" >"$folder/table.md"
