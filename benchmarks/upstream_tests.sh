#!/usr/bin/env bash
# Runs the tests that Stable-Baselines3 and sb3-contrib publish with their sources, this package's algorithms in the place of
# PPO, MaskablePPO and RecurrentPPO, with n_samples as it is by default and with n_samples=1. Writes upstream_tests.md.
# Fails if a test fails that upstream_plugin.py does not list with a reason. About half an hour.
#
#   pip install -c constraints.txt -e ".[dev]" && benchmarks/upstream_tests.sh
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

version_of() { python -c "from importlib.metadata import version; print(version('$1'))"; }

export PYTHONPATH="$here/..:$here" OMP_NUM_THREADS=1 UPSTREAM_REPORT="$scratch/report.md"
cat > "$UPSTREAM_REPORT" <<MARKDOWN
# The tests of Stable-Baselines3 and sb3-contrib

Their own tests, from their source distributions, with HybridGRPO, MaskableHybridGRPO and RecurrentHybridGRPO in the place of
PPO, MaskablePPO and RecurrentPPO, under their names. Left out are tests that have another algorithm as a parameter, and files
without any of the three.
Made by [\`upstream_tests.sh\`](upstream_tests.sh), with [\`upstream_plugin.py\`](upstream_plugin.py).

MARKDOWN

failed=0
for package in stable-baselines3 sb3-contrib; do
    version="$(version_of "$package")"
    pip download -q --no-deps --no-binary :all: "$package==$version" -d "$scratch"
    mkdir "$scratch/$package"
    tar xzf "$scratch/${package//-/_}-$version.tar.gz" -C "$scratch/$package" --strip-components 1
    rm -r "$scratch/$package/${package//-/_}"  # the installed package is what is tested
    cd "$scratch/$package"
    for n_samples in "" 1; do
        export UPSTREAM_N_SAMPLES="$n_samples" UPSTREAM_TITLE="$package $version, \`n_samples=${n_samples:-4}\`"
        mapfile -t files < <(grep -lwE "PPO|MaskablePPO|RecurrentPPO" tests/*.py)
        python -m pytest -q -p upstream_plugin -p no:cacheprovider "${files[@]}" || failed=1
    done
done
{
    python -c "from sb3_hybrid_grpo.commands.cli import versions; print(', '.join(f'{k} {v}' for k, v in versions().items()))"
} >> "$UPSTREAM_REPORT"
cp "$UPSTREAM_REPORT" "$here/upstream_tests.md"
exit "$failed"
