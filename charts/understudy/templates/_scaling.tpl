{{/* Entries of `scaling.pools` by name, with the defaults of a pool merged in; empty while scaling is
off. */}}
{{- define "understudy.scaledPools" -}}
{{- $scaled := dict -}}
{{- if .Values.scaling.enabled -}}
{{- $defaults := include "understudy.scalingDefaults" . | fromYaml -}}
{{- range $entry := .Values.scaling.pools -}}
{{- if hasKey $scaled $entry.name -}}
{{- fail (printf "scaling.pools names %q twice" $entry.name) -}}
{{- end -}}
{{- $_ := set $scaled $entry.name (mustMergeOverwrite (deepCopy $defaults) $entry) -}}
{{- end -}}
{{- end -}}
{{- toYaml $scaled -}}
{{- end -}}

{{/* What an entry of `scaling.pools` leaves out; the same as the documented first one. */}}
{{- define "understudy.scalingDefaults" -}}
ttftS: 2
tpotS: 0.1
utilisation: 0.6
kvOccupancy: 0.8
backlogS: 60
trend: 0
expertsUtilisation: 0.7
queueWaitS: 0.02
ratioTolerance: 0.25
sequencesPerWorker: 4
startS: 180
idleS: 0
attention: {minReplicas: 1, maxReplicas: 4, costPerHour: 0}
experts: {minReplicas: 2, maxReplicas: 4, costPerHour: 0}
{{- end -}}

{{/* Not empty where the controller sizes pools, or says how it would. Takes the root. */}}
{{- define "understudy.controllerSizes" -}}
{{- if and .Values.scaling.enabled (eq .Values.scaling.by "controller") }}true{{ end -}}
{{- end -}}

{{/* Not empty where somebody else than the chart sets the size of a pool; a dry run only tells, so
nothing else may be different then. Takes root and pool (merged). */}}
{{- define "understudy.isSized" -}}
{{- if and .pool.scaling (not .root.Values.scaling.dryRun) }}true{{ end -}}
{{- end -}}

{{/* Name of the workload that a part runs as, as the controller's rules and Role know it. Takes root,
pool (merged) and part. */}}
{{- define "understudy.workload" -}}
{{- $isDeployment := and (include "understudy.controllerSizes" .root | empty | not) (include "understudy.isSized" . | empty | not) (eq .part "experts") -}}
{{- printf "%s/%s" ($isDeployment | ternary "deployments" "statefulsets") (include "understudy.worker" (dict "root" .root "pool" .pool.name "part" .part)) -}}
{{- end -}}

{{/* Workloads that are sized, as a YAML list. Takes the root. */}}
{{- define "understudy.scaledWorkloads" -}}
{{- $workloads := list -}}
{{- range $pool := include "understudy.pools" . | fromYamlArray -}}
{{- if $pool.scaling -}}
{{- range $part := eq $pool.ffn "remote" | ternary (list "attention" "experts") (list "attention") -}}
{{- $workloads = append $workloads (include "understudy.workload" (dict "root" $ "pool" $pool "part" $part)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $workloads -}}
{{- end -}}

{{/* Most workers that a part may have, which callers know by name from the start; those that are not
there do not resolve, and are waited for like one that is restarted. Takes root, pool (merged) and part. */}}
{{- define "understudy.mostReplicas" -}}
{{- $replicas := (index .pool .part).replicas -}}
{{- if include "understudy.isSized" . -}}
{{- $replicas = max $replicas (index .pool.scaling .part).maxReplicas -}}
{{- end -}}
{{- int $replicas -}}
{{- end -}}

{{/* Refuses bounds that cannot be. Takes what has them, where it stands. */}}
{{- define "understudy.checkBounds" -}}
{{- if gt (int .bounds.minReplicas) (int .bounds.maxReplicas) -}}
{{- fail (printf "%s has minReplicas %d above maxReplicas %d" .where (int .bounds.minReplicas) (int .bounds.maxReplicas)) -}}
{{- end -}}
{{- end -}}

{{/* Rules of one part of a scaled pool. Takes root, pool (merged) and part. */}}
{{- define "understudy.partRules" -}}
{{- $bounds := index .pool.scaling .part -}}
{{- include "understudy.checkBounds" (dict "bounds" $bounds "where" (printf "scaling.pools: %s of %q" .part .pool.name)) -}}
{{- dict
      "workload" (include "understudy.workload" .)
      "min_replicas" (int $bounds.minReplicas)
      "max_replicas" (int $bounds.maxReplicas)
      "gpus" (int (index .pool .part).gpus)
      "cost_per_hour" $bounds.costPerHour | toYaml -}}
{{- end -}}

{{/* Refuses what the controller would stop at, or what could never work. Takes root, pools (rules of
all scaled ones). */}}
{{- define "understudy.checkScaling" -}}
{{- $scaling := .root.Values.scaling -}}
{{- $gpus := 0.0 -}}
{{- $cost := 0.0 -}}
{{- range $pool := .pools -}}
{{- if $pool.idle_s -}}
{{- $longest := $.root.Values.router.settings.requestTimeoutS -}}
{{- if gt (float64 $pool.start_s) (float64 $longest) -}}
{{- fail (printf "scaling.pools: %q sleeps (idleS) and takes startS %v to start, above router.settings.requestTimeoutS %v: no request that wakes it could be held so long. Raise requestTimeoutS, and the callers' deadlines, or let it stay awake" $pool.name $pool.start_s $longest) -}}
{{- end -}}
{{- else -}}
{{- range $part := compact (list $pool.attention $pool.experts) -}}
{{- $gpus = addf $gpus (mulf $part.min_replicas $part.gpus) -}}
{{- $cost = addf $cost (mulf $part.min_replicas $part.cost_per_hour) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $scaling.maxGpus (gt $gpus (float64 $scaling.maxGpus)) -}}
{{- fail (printf "scaling.maxGpus is %v and the smallest sizes of the scaled pools take %v GPUs: raise it, or lower minReplicas" $scaling.maxGpus $gpus) -}}
{{- end -}}
{{- if and $scaling.maxCostPerHour (gt $cost (float64 $scaling.maxCostPerHour)) -}}
{{- fail (printf "scaling.maxCostPerHour is %v and the smallest sizes of the scaled pools cost %v an hour: raise it, or lower minReplicas" $scaling.maxCostPerHour $cost) -}}
{{- end -}}
{{- end -}}

{{/* UNDERSTUDY_SCALING_RULES: services/controller/scaling/rules.py says what each key means. The
order of `scaling.pools` is kept, since the first pool is the most important one. */}}
{{- define "understudy.scalingRules" -}}
{{- $scaling := .Values.scaling -}}
{{- $byName := dict -}}
{{- range $pool := include "understudy.pools" . | fromYamlArray -}}
{{- $_ := set $byName $pool.name $pool -}}
{{- end -}}
{{- $pools := list -}}
{{- range $entry := $scaling.pools -}}
{{- $pool := index $byName $entry.name -}}
{{- $rules := dict
      "name" $pool.name
      "ttft_s" $pool.scaling.ttftS
      "tpot_s" $pool.scaling.tpotS
      "utilisation" $pool.scaling.utilisation
      "kv_occupancy" $pool.scaling.kvOccupancy
      "backlog_s" $pool.scaling.backlogS
      "trend" $pool.scaling.trend
      "experts_utilisation" $pool.scaling.expertsUtilisation
      "queue_wait_s" $pool.scaling.queueWaitS
      "ratio_tolerance" $pool.scaling.ratioTolerance
      "start_s" $pool.scaling.startS -}}
{{- with $pool.scaling.idleS }}{{ $_ := set $rules "idle_s" . }}{{ end -}}
{{- range $part := eq $pool.ffn "remote" | ternary (list "attention" "experts") (list "attention") -}}
{{- $_ := set $rules $part (include "understudy.partRules" (dict "root" $ "pool" $pool "part" $part) | fromYaml) -}}
{{- end -}}
{{- $pools = append $pools $rules -}}
{{- end -}}
{{- include "understudy.checkScaling" (dict "root" . "pools" $pools) -}}
{{- $budgets := dict -}}
{{- with $scaling.maxGpus }}{{ $_ := set $budgets "max_gpus" . }}{{ end -}}
{{- with $scaling.maxCostPerHour }}{{ $_ := set $budgets "max_cost_per_hour" . }}{{ end -}}
{{- merge (dict
      "pools" $pools
      "up_cool_down_s" $scaling.upCoolDownS
      "down_cool_down_s" $scaling.downCoolDownS
      "down_window_s" $scaling.downWindowS
      "retry_s" $scaling.retryS) $budgets | toJson -}}
{{- end -}}

{{/* All settings of scaling, beside the controller's own. */}}
{{- define "understudy.scalingSettings" -}}
{{- $rules := "" -}}
{{- if include "understudy.controllerSizes" . }}{{ $rules = include "understudy.scalingRules" . }}{{ end -}}
{{- toYaml (merge (dict
      "rules" $rules
      "namespace" (dict "fieldRef" (dict "fieldPath" "metadata.namespace"))
      "routers" (printf "app.kubernetes.io/instance=%s,app.kubernetes.io/component=router" .Release.Name)
      "lease" (printf "%s-controller" (include "understudy.fullname" .))
      "identity" ""
      "dryRun" .Values.scaling.dryRun) .Values.scaling.settings) -}}
{{- end -}}
