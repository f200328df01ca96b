{{/* Refuses what an autoscaler of the cluster would silently not do. Takes the root. */}}
{{- define "understudy.checkAutoscaling" -}}
{{- $scaling := .Values.scaling -}}
{{- range $key := list "dryRun" "maxGpus" "maxCostPerHour" -}}
{{- if index $scaling $key -}}
{{- fail (printf "scaling.%s is the controller's and scaling.by is %q, which does not know it: take it out, or let the controller size the pools" $key $scaling.by) -}}
{{- end -}}
{{- end -}}
{{- range $name, $pool := include "understudy.scaledPools" . | fromYaml -}}
{{- if $pool.idleS -}}
{{- fail (printf "scaling.pools: %q sleeps (idleS) and scaling.by is %q: only the controller wakes pools" $name $scaling.by) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $scaling.by "keda") (not $scaling.keda.serverAddress) -}}
{{- fail "scaling.by is \"keda\" and scaling.keda.serverAddress is empty: name the Prometheus that it is to ask" -}}
{{- end -}}
{{- end -}}

{{/* What a part of a pool is sized by: series, recorded in deploy/telemetry/rules.yaml, and target, its
value for one worker. Takes pool (merged) and part. */}}
{{- define "understudy.sizedBy" -}}
{{- if eq .part "attention" -}}
series: understudy:attention_sequences_in_flight:sum
target: {{ .pool.scaling.sequencesPerWorker }}
{{- else -}}
series: understudy:experts_computing:sum_rate2m
target: {{ .pool.scaling.expertsUtilisation }}
{{- end -}}
{{- end -}}

{{/* How fast a part may shrink: one worker at a time, since each has to drain. Takes the root. */}}
{{- define "understudy.scaleDown" -}}
stabilizationWindowSeconds: {{ min (ceil .Values.scaling.downWindowS) 3600 }}
policies:
  - {type: Pods, value: 1, periodSeconds: {{ max 1 (min (ceil .Values.scaling.downCoolDownS) 1800) }}}
{{- end -}}

{{/* Spec of a HorizontalPodAutoscaler. Takes root, pool (merged), part and worker. */}}
{{- define "understudy.hpaSpec" -}}
{{- $by := include "understudy.sizedBy" . | fromYaml -}}
{{- $bounds := index .pool.scaling .part -}}
scaleTargetRef: {apiVersion: apps/v1, kind: StatefulSet, name: {{ .worker }}}
minReplicas: {{ $bounds.minReplicas }}
maxReplicas: {{ $bounds.maxReplicas }}
metrics:
  - type: External
    external:
      metric:
        name: {{ $by.series }}
        selector:
          matchLabels: {pool: {{ .pool.name }}}
      target: {type: AverageValue, averageValue: {{ round (mulf $by.target 1000) 0 | int64 | printf "%dm" }}}
behavior:
  scaleDown:
    {{- include "understudy.scaleDown" .root | nindent 4 }}
{{- end -}}

{{/* Spec of a ScaledObject. Takes root, pool (merged), part and worker. */}}
{{- define "understudy.scaledObjectSpec" -}}
{{- $by := include "understudy.sizedBy" . | fromYaml -}}
{{- $bounds := index .pool.scaling .part -}}
{{- $keda := .root.Values.scaling.keda -}}
scaleTargetRef: {apiVersion: apps/v1, kind: StatefulSet, name: {{ .worker }}}
minReplicaCount: {{ $bounds.minReplicas }}
maxReplicaCount: {{ $bounds.maxReplicas }}
advanced:
  horizontalPodAutoscalerConfig:
    behavior:
      scaleDown:
        {{- include "understudy.scaleDown" .root | nindent 8 }}
triggers:
  - type: prometheus
    metricType: AverageValue
    metadata:
      serverAddress: {{ $keda.serverAddress | quote }}
      query: {{ printf "sum(%s{namespace=%q, pool=%q})" $by.series .root.Release.Namespace .pool.name | squote }}
      threshold: {{ $by.target | toString | quote }}
      # A series that is gone is no reason to shrink: the size stays.
      ignoreNullValues: "false"
      {{- if $keda.authentication.name }}
      authModes: {{ $keda.authentication.modes | quote }}
    authenticationRef: {name: {{ $keda.authentication.name }}}
      {{- end }}
{{- end -}}
