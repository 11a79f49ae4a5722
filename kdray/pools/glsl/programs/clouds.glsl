// Clouds before a sky that darkens upwards.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 0.7, 2.5), q = centred(at);
    float amount = between(0, 0.3, 0.45);
    float cloud = smoothstep(amount, amount + between(1, 0.08, 0.3), fbm(p + 0.2 * iTime));
    float shade = fbm(p + 0.3);
    vec3 sky = mix(ink(2), 0.4 * ink(3), 0.5 + 0.5 * dot(q, vec2(cos(iTime), 1)));
    colour = vec4(mix(sky, mix(0.5 * ink(4), vec3(1), shade + 0.2), cloud), 1);
}
