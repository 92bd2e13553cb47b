{{- /* The image of a head or a worker: by digest where one is given. Takes (root, with GPUs?). */ -}}
{{- define "vdna.image" -}}
{{- $image := (index . 0).Values.image -}}
{{- $tag := ternary $image.cudaTag $image.tag (index . 1) -}}
{{- $digest := ternary $image.cudaDigest $image.digest (index . 1) -}}
{{- if and (index . 1) $image.digest (not $image.cudaDigest) -}}
{{- fail "image.digest is set and image.cudaDigest is not; a job with GPUs would run another image than you meant" -}}
{{- end -}}
{{- if $digest }}{{ $image.repository }}@{{ $digest }}{{ else }}{{ $image.repository }}:{{ $tag }}{{ end -}}
{{- end -}}

{{- define "vdna.labels" -}}
app.kubernetes.io/part-of: vdna
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "vdna.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
fsGroup: 1000
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "vdna.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end -}}

{{- /* Requests and limits are the same, so that a node is never short of what was promised. */ -}}
{{- define "vdna.resources" -}}
{cpu: {{ .cpu | quote }}, memory: {{ .memory }}, ephemeral-storage: {{ .ephemeralStorage }}{{ if .gpus }}, nvidia.com/gpu: {{ .gpus }}{{ end }}}
{{- end -}}

{{- define "vdna.pullSecrets" -}}
{{- with .Values.image.pullSecrets -}}
imagePullSecrets:
  {{- range . }}
  - {name: {{ . }}}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "vdna.hasWeights" -}}
{{- with .Values.weightsCache }}{{ if or .claim .size }}yes{{ end }}{{ end -}}
{{- end -}}

{{- define "vdna.env" -}}
env:
  - {name: VDNA_CATALOGUE, value: {{ .Values.catalogue | quote }}}
  {{- range $name, $value := .Values.env }}
  - {name: {{ $name }}, value: {{ $value | quote }}}
  {{- end }}
  {{- if include "vdna.hasWeights" . }}
  - {name: HF_HOME, value: /var/cache/weights/huggingface}
  - {name: TORCH_HOME, value: /var/cache/weights/torch}
  {{- end }}
{{- with .Values.secrets }}
envFrom:
  {{- range . }}
  - secretRef: {name: {{ . }}}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "vdna.weightsVolume" -}}
- name: weights
  persistentVolumeClaim: {claimName: {{ .Values.weightsCache.claim | default (printf "%s-weights" .Release.Name) }}}
{{- end -}}

{{- define "vdna.labelsOfSpot" -}}
- {key: karpenter.sh/capacity-type, operator: In, values: [spot]}
- {key: eks.amazonaws.com/capacityType, operator: In, values: [SPOT]}
- {key: cloud.google.com/gke-spot, operator: Exists}
- {key: kubernetes.azure.com/scalesetpriority, operator: In, values: [spot]}
{{- end -}}

{{- define "vdna.affinity" -}}
{{- $labels := include "vdna.labelsOfSpot" . | fromYamlArray -}}
affinity:
  nodeAffinity:
{{- if eq . "spot-preferred" }}
    # Spot where there is any; on-demand otherwise, so that the job goes on.
    preferredDuringSchedulingIgnoredDuringExecution:
      {{- range $labels }}
      - weight: 100
        preference:
          matchExpressions:
            - {{ . | toJson }}
      {{- end }}
{{- else if eq . "spot" }}
    # One of the labels is enough. Without spot capacity the pods wait.
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        {{- range $labels }}
        - matchExpressions:
            - {{ . | toJson }}
        {{- end }}
{{- else }}
    # Never on a spot node. Labels of EKS, Karpenter, GKE and AKS; where none is set, every node will do.
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - {key: karpenter.sh/capacity-type, operator: NotIn, values: [spot]}
            - {key: eks.amazonaws.com/capacityType, operator: NotIn, values: [SPOT]}
            - {key: cloud.google.com/gke-spot, operator: DoesNotExist}
            - {key: kubernetes.azure.com/scalesetpriority, operator: NotIn, values: [spot]}
{{- end }}
{{- end -}}

{{- /* The values of a job's pools, each with the job's own changes, as YAML. Takes (root, job, name). */ -}}
{{- define "vdna.pools" -}}
{{- $root := index . 0 -}}{{- $job := index . 1 -}}{{- $name := index . 2 -}}
{{- $found := dict -}}
{{- range $pool, $changes := $job.pools -}}
{{- $known := get $root.Values.pools $pool -}}
{{- if not $known -}}
{{- fail (printf "job %s takes the pool %q, and .pools has only %s" $name $pool (keys $root.Values.pools | sortAlpha | join ", ")) -}}
{{- end -}}
{{- $_ := set $found $pool (mergeOverwrite (deepCopy $known) (deepCopy (default dict $changes))) -}}
{{- end -}}
{{- if not $found -}}{{- fail (printf "job %s names no pool" $name) -}}{{- end -}}
{{- $found | toYaml -}}
{{- end -}}

{{- /* How many workers all pods of a job hold. Takes (pools, job, name). */ -}}
{{- define "vdna.workers" -}}
{{- $job := index . 1 -}}{{- $name := index . 2 -}}
{{- $threads := int $job.threads -}}{{- $share := float64 (default 0 $job.gpusPerWorker) -}}
{{- $workers := 0 -}}
{{- range $pool, $values := index . 0 -}}
{{- $cpus := int $values.cpu -}}
{{- $fit := div (sub $cpus 1) $threads | int -}}
{{- if gt $share 0.0 -}}
{{- $fit = floor (divf $values.gpus $share) | int -}}
{{- if le $cpus (mul $fit $threads | int) -}}
{{- fail (printf "job %s: %d workers of %d threads leave none of the %d CPUs of a pod of pool %s free; a lost result could not be computed again, and the job would stall" $name $fit $threads $cpus $pool) -}}
{{- end -}}
{{- else if lt $fit 1 -}}
{{- fail (printf "job %s: a worker of %d threads and one free CPU do not fit into the %d CPUs of pool %s" $name $threads $cpus $pool) -}}
{{- end -}}
{{- $workers = add $workers (mul $fit $values.maxReplicas) | int -}}
{{- end -}}
{{- if lt $workers 1 -}}{{- fail (printf "job %s wants %v GPUs a worker, and its pools have none" $name $job.gpusPerWorker) -}}{{- end -}}
{{- $workers -}}
{{- end -}}

{{- /* The spec of a RayJob. Takes (root, job, name, datasets?). */ -}}
{{- define "vdna.rayjobSpec" -}}
{{- $root := index . 0 -}}{{- $job := index . 1 -}}{{- $name := index . 2 -}}{{- $datasets := index . 3 -}}
{{- $values := $root.Values -}}
{{- $pools := include "vdna.pools" (list $root $job $name) | fromYaml -}}
{{- $gpus := 0 -}}{{- range $pools -}}{{- $gpus = add $gpus .gpus -}}{{- end -}}
{{- $image := include "vdna.image" (list $root (gt (int $gpus) 0)) -}}
{{- $labels := include "vdna.labels" $root -}}
{{- $queue := default "" $job.queue -}}
entrypoint: >-
  vdna {{ $job.command }}
  {{- if $job.threads }}
  --workers {{ include "vdna.workers" (list $pools $job $name) }}
  {{- if $job.gpusPerWorker }} --gpus-per-worker {{ $job.gpusPerWorker }}{{ end }} --threads {{ $job.threads }} --ray-address auto
  {{- end }}
# Each retry is a new cluster and runs the same command, which resumes. Pods of two attempts can
# overlap for a while; commits are create-exclusive, so that nothing is counted twice.
backoffLimit: {{ dig "backoffLimit" 3 $job }}
# Per attempt; a job that runs into it is not retried.
activeDeadlineSeconds: {{ dig "deadlineSeconds" 86400 $job }}
# The cluster goes so many seconds after the end; the RayJob and the submitter's log stay.
shutdownAfterJobFinishes: true
ttlSecondsAfterFinished: {{ dig "ttlSeconds" 600 $job }}
submitterPodTemplate:
  metadata:
    labels:
      {{- $labels | nindent 6 }}
      app.kubernetes.io/component: submitter
  spec:
    {{- with include "vdna.pullSecrets" $root }}{{ . | nindent 4 }}{{ end }}
    automountServiceAccountToken: false
    restartPolicy: Never
    securityContext:
      {{- include "vdna.podSecurity" . | nindent 6 }}
    containers:
      # KubeRay adds the command, which submits the job and prints its log.
      - name: ray-job-submitter
        image: {{ $image }}
        imagePullPolicy: {{ $values.image.pullPolicy }}
        securityContext:
          {{- include "vdna.containerSecurity" . | nindent 10 }}
        resources:
          requests: {cpu: 500m, memory: 1Gi}
          limits: {cpu: "1", memory: 1Gi}
rayClusterSpec:
  rayVersion: {{ $values.rayVersion | quote }}
  {{- if eq $values.auth.mode "token" }}
  authOptions:
    mode: token
    {{- with $values.auth.secretName }}
    secretName: {{ . }}
    {{- end }}
  {{- end }}
  {{- if $queue }}
  # Kueue admits the whole cluster at once, so that nothing is left to scale.
  enableInTreeAutoscaling: false
  {{- else }}
  enableInTreeAutoscaling: true
  autoscalerOptions:
    version: v2
    idleTimeoutSeconds: 120
    securityContext:
      {{- include "vdna.containerSecurity" . | nindent 6 }}
  {{- end }}
  headGroupSpec:
    rayStartParams:
      # No work on the head: a busy or swapping head takes the whole job with it.
      num-cpus: "0"
    template:
      metadata:
        labels:
          {{- $labels | nindent 10 }}
          app.kubernetes.io/component: head
        annotations:
          # Node autoscalers leave this pod where it is.
          cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
          karpenter.sh/do-not-disrupt: "true"
      spec:
        serviceAccountName: {{ $root.Release.Name }}
        {{- with include "vdna.pullSecrets" $root }}{{ . | nindent 8 }}{{ end }}
        # Autoscaler v2 replaces pods; a container that restarts in place would confuse it.
        restartPolicy: Never
        {{- with $values.head.priorityClassName }}
        priorityClassName: {{ . }}
        {{- end }}
        {{- with $values.head.nodeSelector }}
        nodeSelector:
          {{- toYaml . | nindent 10 }}
        {{- end }}
        {{- with $values.head.tolerations }}
        tolerations:
          {{- range . }}
          - {{ . | toJson }}
          {{- end }}
        {{- end }}
        securityContext:
          {{- include "vdna.podSecurity" . | nindent 10 }}
        # Losing the head costs an attempt.
        {{- include "vdna.affinity" "on-demand" | nindent 8 }}
        containers:
          - name: ray-head
            image: {{ $image }}
            imagePullPolicy: {{ $values.image.pullPolicy }}
            securityContext:
              {{- include "vdna.containerSecurity" . | nindent 14 }}
            {{- include "vdna.env" $root | nindent 12 }}
            ports:
              - {name: gcs-server, containerPort: 6379}
              - {name: dashboard, containerPort: 8265}
              - {name: metrics, containerPort: 8080}
            resources:
              requests: {{ include "vdna.resources" $values.head }}
              limits: {{ include "vdna.resources" $values.head }}
            {{- if or $datasets (include "vdna.hasWeights" $root) }}
            volumeMounts:
              {{- if $datasets }}
              - {name: datasets, mountPath: /etc/vdna, readOnly: true}
              {{- end }}
              {{- if include "vdna.hasWeights" $root }}
              - {name: weights, mountPath: /var/cache/weights}
              {{- end }}
            {{- end }}
        {{- if or $datasets (include "vdna.hasWeights" $root) }}
        volumes:
          {{- if $datasets }}
          - name: datasets
            configMap: {name: {{ $datasets }}}
          {{- end }}
          {{- if include "vdna.hasWeights" $root }}
          {{- include "vdna.weightsVolume" $root | nindent 10 }}
          {{- end }}
        {{- end }}
  workerGroupSpecs:
    {{- range $pool, $group := $pools }}
    - groupName: {{ $pool }}
      replicas: {{ ternary $group.maxReplicas $group.minReplicas (ne $queue "") }}
      minReplicas: {{ ternary $group.maxReplicas $group.minReplicas (ne $queue "") }}
      maxReplicas: {{ $group.maxReplicas }}
      rayStartParams: {}
      template:
        metadata:
          labels:
            {{- $labels | nindent 12 }}
            app.kubernetes.io/component: worker
        spec:
          serviceAccountName: {{ $root.Release.Name }}
          {{- with include "vdna.pullSecrets" $root }}{{ . | nindent 10 }}{{ end }}
          # Only the autoscaler, on the head, talks to Kubernetes. IRSA's token is another one.
          automountServiceAccountToken: false
          restartPolicy: Never
          # A worker has nothing to save: what it had not committed is computed again.
          terminationGracePeriodSeconds: 30
          {{- with $group.priorityClassName }}
          priorityClassName: {{ . }}
          {{- end }}
          {{- with $group.nodeSelector }}
          nodeSelector:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          securityContext:
            {{- include "vdna.podSecurity" . | nindent 12 }}
          {{- $spot := ne $group.capacity "on-demand" }}
          {{- if or $spot $group.tolerations }}
          tolerations:
            {{- if $spot }}
            - {key: spot, operator: Exists, effect: NoSchedule}
            - {key: cloud.google.com/gke-spot, operator: Exists, effect: NoSchedule}
            - {key: kubernetes.azure.com/scalesetpriority, operator: Exists, effect: NoSchedule}
            {{- end }}
            {{- range $group.tolerations }}
            - {{ . | toJson }}
            {{- end }}
          {{- end }}
          {{- include "vdna.affinity" $group.capacity | nindent 10 }}
          containers:
            - name: ray-worker
              image: {{ $image }}
              imagePullPolicy: {{ $values.image.pullPolicy }}
              securityContext:
                {{- include "vdna.containerSecurity" . | nindent 16 }}
              {{- include "vdna.env" $root | nindent 14 }}
              ports:
                - {name: metrics, containerPort: 8080}
              resources:
                # Ray counts these limits. One CPU more than the workers' threads take is free: without
                # room to compute a lost piece again, a job can stall.
                requests: {{ include "vdna.resources" $group }}
                limits: {{ include "vdna.resources" $group }}
              {{- if include "vdna.hasWeights" $root }}
              volumeMounts:
                - {name: weights, mountPath: /var/cache/weights}
              {{- end }}
          {{- if include "vdna.hasWeights" $root }}
          volumes:
            {{- include "vdna.weightsVolume" $root | nindent 12 }}
          {{- end }}
    {{- end }}
{{- end -}}

{{- define "vdna.queueLabels" -}}
{{- if .queue -}}
kueue.x-k8s.io/queue-name: {{ .queue }}
{{- if .queuePriority }}
kueue.x-k8s.io/priority-class: {{ .queuePriority }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* The spec of the Job that fetches weights. Takes the root. */ -}}
{{- define "vdna.weightsJobSpec" -}}
backoffLimit: 3
template:
  metadata:
    labels:
      {{- include "vdna.labels" . | nindent 6 }}
      app.kubernetes.io/component: weights
  spec:
    {{- with include "vdna.pullSecrets" . }}{{ . | nindent 4 }}{{ end }}
    automountServiceAccountToken: false
    restartPolicy: Never
    securityContext:
      {{- include "vdna.podSecurity" . | nindent 6 }}
    containers:
      - name: weights
        image: {{ include "vdna.image" (list . false) }}
        imagePullPolicy: {{ .Values.image.pullPolicy }}
        args: {{ concat (list "weights" "pull") .Values.weightsCache.networks | toJson }}
        securityContext:
          {{- include "vdna.containerSecurity" . | nindent 10 }}
        {{- include "vdna.env" . | nindent 8 }}
        resources:
          requests: {cpu: "1", memory: 4Gi}
          limits: {cpu: "1", memory: 4Gi}
        volumeMounts:
          - {name: weights, mountPath: /var/cache/weights}
    volumes:
      {{- include "vdna.weightsVolume" . | nindent 6 }}
{{- end -}}
