{{/* Security contexts that the Pod Security Standard `restricted` asks for, and a read-only root. */}}
{{- define "understudy.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .user }}
runAsGroup: {{ .user }}
fsGroup: {{ .user }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "understudy.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* What every pod has. Takes root, placement (values with nodeSelector and tolerations) and user;
optionally account, the name of a ServiceAccount whose token is mounted, and spread, the labels (as
understudy.selector takes them) of the pods that this one keeps away from, preStopS where it is not that
of `serving`, graceS for what drains nothing, and drainS for what drains longer than others do. The grace
period covers preStop, the drain and a margin to exit. */}}
{{- define "understudy.pod" -}}
serviceAccountName: {{ .account | default (include "understudy.fullname" .root) }}
automountServiceAccountToken: {{ .account | empty | not }}
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .graceS | default (add (.preStopS | default .root.Values.serving.preStopS) (.drainS | default .root.Values.serving.drainGraceS) 10) }}
securityContext:
  {{- include "understudy.podSecurity" (dict "user" .user) | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .placement.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .placement.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .placement.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .placement.resourceClaims }}
resourceClaims:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .spread }}
{{- range $index, $constraint := .root.Values.topologySpread }}
{{- if eq $index 0 }}
topologySpreadConstraints:
{{- end }}
  - {{ toYaml $constraint | nindent 4 | trim }}
    labelSelector:
      matchLabels:
        {{- include "understudy.selector" $.spread | nindent 8 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Compute resources of a worker, with its GPUs or the devices it claims. Takes root and part (values
with resources, gpus and resourceClaims). */}}
{{- define "understudy.workerResources" -}}
{{- $resources := deepCopy .part.resources -}}
{{- if .part.resourceClaims -}}
{{- $claims := list -}}
{{- range .part.resourceClaims }}{{ $claims = append $claims (dict "name" .name) }}{{ end -}}
{{- $_ := set $resources "claims" $claims -}}
{{- else if .part.gpus -}}
{{- $limits := $resources.limits | default dict -}}
{{- $_ := set $limits .root.Values.gpuResource (int .part.gpus | toString) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* Settings as environment variables: key `drainGraceS` under prefix UNDERSTUDY_SERVING becomes
UNDERSTUDY_SERVING_DRAIN_GRACE_S. Numbers arrive as floats from YAML and leave without exponent. */}}
{{- define "understudy.env" -}}
{{- $prefix := .prefix -}}
{{- range $key, $value := .settings }}
- name: {{ $prefix }}_{{ $key | snakecase | upper }}
  {{- if kindIs "map" $value }}
  valueFrom:
    {{- toYaml $value | nindent 4 }}
  {{- else if and (kindIs "float64" $value) (eq (floor $value) $value) }}
  value: {{ $value | int64 | toString | quote }}
  {{- else }}
  value: {{ $value | toString | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* A container of an Understudy service. Takes root, service, settings (all of its fields),
resources, port, metricsPort; optionally portName, metricsPortName, ports and mounts (further ones, as
YAML), maxConnectionAgeS, preStopS, healthPort, healthPortName, isSidecar, callerTls (not empty where
callers see certificates) and scaling (all settings of scaling). */}}
{{- define "understudy.container" -}}
{{- $serving := .root.Values.serving -}}
{{- $hasTls := include "understudy.hasTls" .root -}}
{{- $healthPort := .healthPort | default (include "understudy.healthPort" .root) -}}
{{- $hasHealth := or $hasTls .callerTls -}}
{{- $probed := $hasHealth | empty | ternary .port $healthPort -}}
- name: {{ .service }}
  image: {{ include "understudy.serviceImage" . }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [python, -m, services.{{ .service }}]
  env:
    {{- include "understudy.env" (dict "prefix" "UNDERSTUDY_SERVING" "settings" (merge (dict
          "listen" (printf "0.0.0.0:%s" .port)
          "metricsListen" (printf "0.0.0.0:%s" .metricsPort)
          "drainGraceS" $serving.drainGraceS
          "otlpEndpoint" (include "understudy.otlpEndpoint" .root)
          "traceSampleRatio" $serving.traceSampleRatio
          "logLevel" $serving.logLevel
          "maxCallS" $serving.maxCallS
          "maxConcurrentCalls" $serving.maxConcurrentCalls
          "maxConnectionAgeS" (.maxConnectionAgeS | default 0)
          "readyFile" "")
          (include "understudy.tlsSettings" (dict "root" .root "healthPort" $healthPort "hasHealth" $hasHealth) | fromYaml))) | trim | nindent 4 }}
    {{- include "understudy.env" (dict "prefix" (printf "UNDERSTUDY_%s" (upper .service)) "settings" .settings) | trim | nindent 4 }}
    {{- with .scaling }}
    {{- include "understudy.env" (dict "prefix" "UNDERSTUDY_SCALING" "settings" .) | trim | nindent 4 }}
    {{- end }}
  ports:
    - {name: {{ .portName | default "grpc" }}, containerPort: {{ .port }}}
    - {name: {{ .metricsPortName | default "metrics" }}, containerPort: {{ .metricsPort }}}
    {{- if $hasHealth }}
    - {name: {{ .healthPortName | default "health" }}, containerPort: {{ $healthPort }}}
    {{- end }}
    {{- with .ports }}
    {{- . | nindent 4 }}
    {{- end }}
  # Probes have no certificate: where services do, a port that answers health only is for them.
  {{- if .isSidecar }}
  # No startup probe: the pod's next container would wait for it, and it can do without this one.
  livenessProbe:
    grpc: {port: {{ $probed }}, service: liveness}
    initialDelaySeconds: 60
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 3
  restartPolicy: Always
  {{- else }}
  # A start is over once the process answers: peers that are not there yet are no reason to restart.
  startupProbe:
    grpc: {port: {{ $probed }}, service: liveness}
    periodSeconds: 1
    timeoutSeconds: 1
    failureThreshold: {{ .root.Values.serving.startupS }}
  # "liveness" is SERVING as long as the process answers: one that is not ready, because a peer is
  # away or it drains, is not helped by a restart.
  livenessProbe:
    grpc: {port: {{ $probed }}, service: liveness}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 3
  # Often: each link of a chain of services waits for the one before to be seen ready.
  readinessProbe:
    grpc: {port: {{ $probed }}}
    periodSeconds: 2
    timeoutSeconds: 2
    failureThreshold: 5
  lifecycle:
    preStop:
      sleep: {seconds: {{ .preStopS | default $serving.preStopS }}}
  {{- end }}
  resources:
    {{- toYaml .resources | nindent 4 }}
  securityContext:
    {{- include "understudy.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    {{- if include "understudy.weightsClaim" .root }}
    - {name: weights, mountPath: {{ .root.Values.weights.mountPath }}, readOnly: true}
    {{- end }}
    {{- if $hasTls }}
    - {name: tls-{{ .service }}, mountPath: /etc/understudy/tls, readOnly: true}
    {{- end }}
    {{- with .mounts }}
    {{- . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* Volumes behind the mounts of understudy.container. Takes root and components, its services. */}}
{{- define "understudy.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
{{- with include "understudy.weightsClaim" .root }}
- name: weights
  persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
{{- end }}
{{- include "understudy.tlsVolumes" . }}
{{- end -}}
