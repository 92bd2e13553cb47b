#!/usr/bin/env bash
# Tries everything on a cluster of kind: KubeRay, the chart, and two builds of the same pictures. A
# worker's pod is killed during the second. Both must have the same counts, to the last bit.
#   infra/trial.sh          needs docker, kind, kubectl and helm, 8 CPUs and 16 GB
#   KEEP=yes infra/trial.sh keeps the cluster
set -euo pipefail
cd "$(dirname "$0")/.."
cluster=vdna-trial
for program in docker kind kubectl helm; do
    command -v "$program" >/dev/null || { echo "$program is not installed"; exit 2; }
done
say() { printf '\n%s\n' "== $*"; }
on() { kubectl --context "kind-$cluster" --namespace vdna "$@"; }
helmed() { helm --kube-context "kind-$cluster" "$@"; }
ended() {
    local state
    for _ in $(seq 360); do
        state=$(on get rayjob "vdna-$1" --output 'jsonpath={.status.jobDeploymentStatus} {.status.jobStatus}')
        case $state in
            "Complete SUCCEEDED") echo "vdna-$1 succeeded"; return ;;
            Failed* | ValidationFailed* | Complete*) break ;;
        esac
        sleep 5
    done
    echo "vdna-$1: ${state:-nothing was told}"
    on describe rayjob "vdna-$1"
    on logs "job/vdna-$1" --tail 50
    return 1
}
started() {  # the jobs so far and one more; those have ended, and are left alone
    jobs="${jobs:+$jobs, }\"$1\": {\"command\": \"build $1 s3://trial/images\", \"threads\": 1, \"ttlSeconds\": 5, \"pools\": {\"cpu\": {}}}"
    helmed upgrade --install vdna infra/chart --namespace vdna --values infra/values/trial.yaml \
        --set-json "jobs={$jobs}"
}

say "the image"
docker build --file infra/Dockerfile --tag vdna-pipeline:trial .

say "the cluster"
kind create cluster --name "$cluster" --wait 120s
[ "${KEEP:-no}" = yes ] || trap 'kind delete cluster --name "$cluster"' EXIT
kind load docker-image vdna-pipeline:trial --name "$cluster"

say "KubeRay"
helmed upgrade --install kuberay-operator kuberay-operator --version 1.7.0 \
    --repo https://ray-project.github.io/kuberay-helm --namespace kuberay-system --create-namespace --wait

say "pictures in a store"
kubectl --context "kind-$cluster" create namespace vdna
on create configmap trial-scripts --from-file infra/trial/fill.py --from-file infra/trial/check.py
on apply --filename infra/trial/store.yaml
on wait --for condition=complete --timeout 600s job/fill

say "a build that nobody disturbs"
jobs=""
started calm
ended calm

say "a build that loses a worker"
started killed
counting=no
for _ in $(seq 150); do
    on logs job/vdna-killed --tail 5 2>/dev/null | grep -Eq '[1-9][0-9,]*/[0-9,]+ images' && { counting=yes; break; }
    sleep 2
done
[ "$counting" = yes ] || { echo "vdna-killed did not begin to count"; on get pods; exit 1; }
ray=$(on get rayjob vdna-killed --output 'jsonpath={.status.rayClusterName}')
victim=$(on get pods --selector "ray.io/cluster=$ray,ray.io/node-type=worker" --output name | tail -n 1)
[ -n "$victim" ] || { echo "$ray has no worker"; exit 1; }
on delete "$victim" --grace-period 0 --force
ended killed

say "the counts"
on patch job check --patch '{"spec": {"suspend": false}}'
on wait --for condition=complete --timeout 300s job/check || { on logs job/check; exit 1; }
on logs job/check
